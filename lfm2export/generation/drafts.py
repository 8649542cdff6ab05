"""Drafts from what was read and written: an answer that copies goes on as what it copies did, so propose just that.

    ... "name": "Ada Lovelace", born 1815 ... and she was called Ada Love|     the longest suffix seen before ends here
                          ^^^^^^^^                               ^^^^^^^^|lace  draft: what followed there

A step of several tokens costs a little more than one of one, for the weights are read once. How many drafts a step
gets, and whether any, is decided by what they cost and by how often such drafts came true: of suffixes as long, seen as
often, followed by the same or by this and that. A budget bounds what wrong ones may cost, so that an answer which
copies nothing is as fast as without, but for two percent. Time decides nothing here: equal prompts and seeds have equal
drafts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

#: A draft token's cost in steps of one token. Measured, 350M on 2 cores: .13 to .21 for one and .34 to .51 for two with
#: 4-bit blocks, .21 and .42 with 8 bits by channel.
COST = 0.22

#: The budget of wrong drafts in steps: at first, per token of the answer, and at most.
FIRST_BUDGET, BUDGET_RATE, MAX_BUDGET = 0.5, 0.015, 1.5

#: How often a draft comes true before anything was seen, and the weight of that guess: by the length of the suffix, if
#: it was seen once before; if several times and all went on alike, which tells most; if they went on differently.
BOUNDS = (1, 2, 3, 5, 8)
ONCE = (0.2, 0.4, 0.5, 0.65, 0.8)
ALIKE = (0.65, 0.88, 0.88, 0.92, 0.92)
DIFFERENTLY = 0.15
PRIOR_WEIGHT = 3.0

#: What was seen counts less by this factor with each token after such a suffix: an answer may change its ways.
MEMORY = 0.97

#: Earlier places of a suffix that are looked at, the last ones, and how far back each is compared.
MOST_PLACES, LONGEST = 16, 16

#: Suffixes of these lengths are looked up, the longer first.
LOOKED_UP = (2, 1)


class NgramDrafts:
    """Proposes what may come next, and learns from what did. One answer's; `tokens` are its prompt.

    Args:
        most: drafts in one step at most.
    """

    def __init__(self, tokens: Sequence[int], most: int) -> None:
        self.most = most
        self.drafted = self.accepted = 0
        self._tokens: list[int] = []
        self._places: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        prior = (*ONCE, *ALIKE, DIFFERENTLY)
        self._right = [rate * PRIOR_WEIGHT for rate in prior]
        self._seen = [PRIOR_WEIGHT] * len(prior)
        self._budget = FIRST_BUDGET
        self._expected: tuple[int, tuple[int, ...], list[int]] = (0, (), [])  # from which token, kinds, tokens
        self._drafts: list[int] = []
        for token in tokens:
            self._append(token)

    def push(self, token: int) -> None:
        """The answer's next token, whether it was a draft or not."""
        self._append(token)
        self._budget = min(self._budget + BUDGET_RATE, MAX_BUDGET)

    def propose(self, room: int) -> list[int]:
        """Up to `room` tokens that may follow; none where that would not pay."""
        kinds, place = self._suffix(min(room, self.most)) if room > 0 else ((), 0)
        self._expected = (len(self._tokens), kinds, self._tokens[place : place + len(kinds)])
        self._drafts = self._tokens[place : place + self._worth(kinds)]
        return self._drafts

    def settle(self, accepted: int) -> None:
        """The step that :meth:`propose` was asked for is done, and its tokens are pushed: of the drafts, the first
        `accepted` came true. What was not worth a draft is learned from, too: whether it would have come true.
        """
        start, kinds, expected = self._expected
        for kind, token, found in zip(kinds, expected, self._tokens[start:], strict=False):
            self._right[kind] = self._right[kind] * MEMORY + (token == found)
            self._seen[kind] = self._seen[kind] * MEMORY + 1
            if token != found:
                break
        if self._drafts:
            self._budget = min(self._budget + accepted - COST * len(self._drafts), MAX_BUDGET)
            self.drafted += len(self._drafts)
            self.accepted += accepted
        self._expected, self._drafts = (0, (), []), []

    def _append(self, token: int) -> None:
        """Note what `token` follows."""
        for length in LOOKED_UP:
            if len(self._tokens) >= length:
                self._places[tuple(self._tokens[-length:])].append(len(self._tokens))
        self._tokens.append(token)

    def _suffix(self, room: int) -> tuple[tuple[int, ...], int]:
        """(kinds of up to `room` drafts, the place where they stand): what followed the longest suffix seen before, the
        last time. No kinds: there is none."""
        tokens = self._tokens
        places = next((p for n in LOOKED_UP if (p := self._places.get(tuple(tokens[-n:])))), [])[-MOST_PLACES:]
        if not places:
            return (), 0
        lengths = [self._common(place) for place in places]
        longest = max(lengths)
        best = [place for place, length in zip(places, lengths, strict=True) if length == longest]
        kinds = []
        for ahead in range(min(room, len(tokens) - best[-1])):
            following = {tokens[place + ahead] for place in best if place + ahead < len(tokens)}
            kinds.append(_kind(longest + ahead, len(best), len(following)))
            wanted = tokens[best[-1] + ahead]
            best = [place for place in best if place + ahead < len(tokens) and tokens[place + ahead] == wanted]
        return tuple(kinds), best[-1]

    def _common(self, place: int) -> int:
        """How many tokens before `place` are the last ones."""
        tokens, length = self._tokens, 1
        while length < min(LONGEST, place) and tokens[place - length - 1] == tokens[-length - 1]:
            length += 1
        return length

    def _worth(self, kinds: tuple[int, ...]) -> int:
        """How many drafts of these kinds make tokens cheapest, as far as the budget goes."""
        count, best = 0, 1.0
        chance, tokens = 1.0, 1.0
        for drafts, kind in enumerate(kinds, start=1):
            if self._budget < COST * drafts:
                break
            chance *= self._right[kind] / self._seen[kind]
            tokens += chance
            price = (1 + COST * drafts) / tokens
            if price < best:
                count, best = drafts, price
        return count


def _kind(length: int, places: int, followed: int) -> int:
    """Which prior counts for a draft after a suffix of `length`, seen at `places` that `followed` tokens follow."""
    if followed > 1:
        return len(ONCE) + len(ALIKE)
    return sum(length >= bound for bound in BOUNDS) - 1 + (len(ONCE) if places > 1 else 0)
