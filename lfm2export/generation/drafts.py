"""Drafts from what was read and written: an answer that copies goes on as what it copies did, so propose just that.

    ... "name": "Ada Lovelace", born 1815 ... and she was called Ada Love|     the longest suffix seen before ends here
                          ^^^^^^^^                               ^^^^^^^^|lace  draft: what followed there

A step of several tokens costs a little more than one of one, for the weights are read once. How many drafts a step
gets, and whether any, is decided by what it costs and by how often drafts after a suffix of that length came true. A
budget bounds what wrong ones may cost, so that an answer which copies nothing is as fast as without, but for a percent
or two. Time decides nothing here: equal prompts and seeds have equal drafts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

#: A draft token's cost in steps of one token. Measured, 350M, 2 cores: see benchmarks/drafts.
COST = 0.2

#: The budget of wrong drafts in steps: at first, per token of the answer, and at most.
FIRST_BUDGET, BUDGET_RATE, MAX_BUDGET = 0.5, 0.015, 1.5

#: Suffixes shorter than this propose nothing; longer ones than the last bound count as one kind.
SHORTEST = 2
BOUNDS = (2, 3, 4, 6, 9)

#: How often a draft after a suffix of that kind comes true before anything was seen, and the weight of that guess.
PRIOR = (0.4, 0.55, 0.7, 0.8, 0.9)
PRIOR_WEIGHT = 3.0

#: What was seen counts less by this factor with each draft of its kind, so that an answer may change its ways.
MEMORY = 0.9

#: Earlier places of a suffix that are looked at, and how far back each is compared.
MOST_PLACES, LONGEST = 8, 16


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
        self._right = [rate * PRIOR_WEIGHT for rate in PRIOR]
        self._seen = [PRIOR_WEIGHT] * len(PRIOR)
        self._budget = FIRST_BUDGET
        self._proposed: tuple[int, list[int]] = (0, [])  # suffix length, drafts
        for token in tokens:
            self._append(token)

    def push(self, token: int) -> None:
        """The answer's next token, whether it was a draft or not."""
        self._append(token)
        self._budget = min(self._budget + BUDGET_RATE, MAX_BUDGET)

    def propose(self, room: int) -> list[int]:
        """Up to `room` tokens that may follow; none where that would not pay."""
        room = min(room, self.most)
        length, place = self._longest_suffix() if room > 0 else (0, 0)
        found = self._tokens[place : place + min(room, self._worth(length))] if length else []
        self._proposed = (length, found)
        return found

    def settle(self, accepted: int) -> None:
        """Of the drafts proposed last, the first `accepted` came true."""
        length, drafts = self._proposed
        if not drafts:
            return
        for place in range(min(accepted + 1, len(drafts))):
            kind = _kind(length + place)
            self._right[kind] = self._right[kind] * MEMORY + (place < accepted)
            self._seen[kind] = self._seen[kind] * MEMORY + 1
        self._budget = min(self._budget + accepted - COST * len(drafts), MAX_BUDGET)
        self.drafted += len(drafts)
        self.accepted += accepted

    def _append(self, token: int) -> None:
        """Note where the last tokens end, so that what follows them there is found."""
        self._tokens.append(token)
        if len(self._tokens) > SHORTEST:  # the suffix before this token: it is what `token` follows
            self._places[tuple(self._tokens[-SHORTEST - 1 : -1])].append(len(self._tokens) - 1)

    def _longest_suffix(self) -> tuple[int, int]:
        """(its length, the place behind its earlier occurrence); the latest of the longest. (0, 0): there is none."""
        tokens, best, where = self._tokens, 0, 0
        for place in reversed(self._places.get(tuple(tokens[-SHORTEST:]), [])[-MOST_PLACES:]):
            length = SHORTEST
            while length < min(LONGEST, place) and tokens[place - length - 1] == tokens[-length - 1]:
                length += 1
            if length > best:
                best, where = length, place
        return best, where

    def _worth(self, length: int) -> int:
        """How many drafts after a suffix of `length` make tokens cheapest, as far as the budget goes."""
        count, best = 0, 1.0
        chance, tokens = 1.0, 1.0
        for drafts in range(1, self.most + 1):
            if self._budget < COST * drafts:
                break
            kind = _kind(length + drafts - 1)
            chance *= self._right[kind] / self._seen[kind]
            tokens += chance
            price = (1 + COST * drafts) / tokens
            if price < best:
                count, best = drafts, price
        return count


def _kind(length: int) -> int:
    """Which of :data:`BOUNDS` a suffix of `length` reaches."""
    return sum(length >= bound for bound in BOUNDS) - 1
