"""Drafts: what is proposed and when, and that no draft changes what is answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfm2export.generation import drafts as policy
from lfm2export.generation import loop as looping
from lfm2export.generation.drafts import BUDGET_RATE, COST, FIRST_BUDGET, MAX_BUDGET, NgramDrafts
from lfm2export.generation.loop import Stop, generate
from lfm2export.generation.sampling import Sampler, Sampling, process, softmax
from lfm2export.runtime import BufferedModel, OnnxModel
from lfm2export.spec import ModelSpec, parse_spec
from standin import CONFIG, write_standin

SAMPLED = Sampling(temperature=0.8, min_p=0.02, top_k=3, top_p=0.98, repetition_penalty=1.3)


class Chain:
    """A model whose next token depends on its last two; its state is all its tokens."""

    max_drafts = 2
    spec: ModelSpec = parse_spec(CONFIG | {"vocab_size": 64})

    def __init__(self, vocabulary: int) -> None:
        self.table = np.random.default_rng(1).normal(size=(vocabulary, vocabulary, vocabulary)).astype(np.float32) * 2
        self.steps = 0

    class State(tuple[int, ...]):
        @property
        def lengths(self) -> np.ndarray:
            return np.array([len(self)])

    def new_state(self, batch: int = 1) -> State:
        return self.State()

    def _rows(self, tokens: Sequence[int], held: int) -> np.ndarray:
        pairs = [(tokens[end - 2] if end > 1 else 0, tokens[end - 1]) for end in range(held + 1, len(tokens) + 1)]
        return np.array([[self.table[pair] for pair in pairs]])

    def step(self, tokens: np.ndarray, state: State, attention_mask: object = None) -> tuple[np.ndarray, State]:
        self.steps += 1
        whole = (*state, *map(int, tokens[0]))
        return self._rows(whole, len(state))[:, -1:], self.State(whole)

    def speculate(self, tokens: np.ndarray, state: State) -> tuple[np.ndarray, Callable[[int], State]]:
        self.steps += 1
        whole = (*state, *map(int, tokens[0]))
        return self._rows(whole, len(state)), lambda count: self.State(whole[: len(state) + count])


class Scripted:
    """Chooses what the script says, and multiplies the probabilities that it had."""

    def __init__(self, script: Sequence[int], sampling: Sampling) -> None:
        self.script, self.sampling, self.probability = list(script), sampling, 1.0

    def __call__(self, logits: np.ndarray, tokens: Sequence[int]) -> int:
        token = self.script.pop(0)
        self.probability *= float(softmax(process(logits, tokens, self.sampling).astype(np.float64))[token])
        return token


class Always(NgramDrafts):
    """Proposes as much as it may, right or wrong."""

    def propose(self, room: int) -> list[int]:
        self._drafts = [(self._tokens[-1] + place) % 3 for place in range(min(room, self.most))]
        return self._drafts


@pytest.mark.parametrize("sampling", [Sampling(temperature=1.0), SAMPLED], ids=["plain", "every processor"])
@pytest.mark.parametrize("proposer", [NgramDrafts, Always])
def test_every_answer_has_the_probability_that_it_has_without(
    sampling: Sampling, proposer: type[NgramDrafts], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exactly, by enumeration of all answers of five tokens."""
    monkeypatch.setattr(looping, "NgramDrafts", proposer)
    prompt, total, fewer = [0, 1, 2, 0, 1, 2, 0], 0.0, 0
    for script in product(range(3), repeat=5):
        found = []
        for draft in (False, True):
            model, chosen = Chain(3), Scripted(script, sampling)
            answer = generate(model, prompt, max_new_tokens=5, sampler=chosen, draft=draft)  # type: ignore[arg-type, var-annotated]
            assert answer.tokens == list(script)
            assert answer.state == (*prompt, *script[:4])
            found.append(chosen.probability)
            fewer += draft and model.steps < 5
        assert found[0] == found[1]
        total += found[1]
    assert total == pytest.approx(1, abs=1e-6)
    assert fewer > 20, "drafts that came true save steps"


def frequencies(runs: int, draft: bool) -> Counter[tuple[int, ...]]:
    model = Chain(3)
    sampler = Sampler(Sampling(temperature=1.0), seed=5)
    prompt = [0, 1, 2, 0, 1, 2, 0, 1]
    return Counter(
        tuple(generate(model, prompt, max_new_tokens=3, sampler=sampler, draft=draft).tokens)  # type: ignore[arg-type, var-annotated]
        for _ in range(runs)
    )


def chi_square(found: Counter[tuple[int, ...]], runs: int) -> float:
    total = 0.0
    for script in product(range(3), repeat=3):
        chosen = Scripted(script, Sampling(temperature=1.0))
        generate(Chain(3), [0, 1, 2, 0, 1, 2, 0, 1], max_new_tokens=3, sampler=chosen)  # type: ignore[arg-type, var-annotated]
        expected = runs * chosen.probability
        total += (found[script] - expected) ** 2 / expected
    return total


def test_drawn_answers_have_the_model_s_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    """By frequency; 26 degrees of freedom, of which one in a thousand exceeds 54. A proposer that is believed blindly
    is found out."""
    assert chi_square(frequencies(3000, draft=True), 3000) < 54
    choose = Sampler.__call__

    def believing(self: Sampler, logits: np.ndarray, tokens: Sequence[int]) -> int:
        token = choose(self, logits, tokens)
        return 2 if list(tokens[-2:]) == [0, 1] else token

    monkeypatch.setattr(Sampler, "__call__", believing)
    assert chi_square(frequencies(300, draft=True), 300) > 54


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    return OnnxModel(write_standin(tmp_path_factory.mktemp("standin"), logits="all"), threads=1)


PROMPT = [3, 1, 4, 1, 5, 9, 3, 1, 4, 1, 5]


@pytest.mark.parametrize("buffered", [False, True])
@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED], ids=["greedy", "sampled"])
def test_the_answer_is_that_without_drafts(model: OnnxModel, sampling: Sampling, buffered: bool) -> None:
    loop: Any = BufferedModel(model) if buffered else model
    plain = generate(loop, PROMPT, max_new_tokens=60, sampler=Sampler(sampling, 4))
    seen: list[int] = []
    fast = generate(loop, PROMPT, max_new_tokens=60, sampler=Sampler(sampling, 4), draft=True, on_token=seen.append)
    assert fast.tokens == seen == plain.tokens
    assert fast.stop is plain.stop is Stop.LENGTH
    assert fast.state.lengths.tolist() == plain.state.lengths.tolist() == [len(PROMPT) + 59]
    assert fast.drafted >= fast.accepted > 0 and plain.drafted == 0
    again = [*PROMPT, *fast.tokens, 7, 8]
    more = [generate(loop, again, max_new_tokens=9, state=held.state, draft=True).tokens for held in (fast,)]
    assert more == [generate(model, again, max_new_tokens=9).tokens]


def test_an_answer_ends_where_it_does_without_drafts(model: OnnxModel) -> None:
    """At every place of the answer: at a stop token within a run of drafts, at a count, at a length."""
    whole = generate(model, PROMPT, max_new_tokens=40).tokens
    for count in range(1, 40):
        for ends in ({"max_new_tokens": count}, {"max_new_tokens": 99, "length": len(PROMPT) + count}):
            plain, fast = (generate(model, PROMPT, draft=draft, **ends) for draft in (False, True))
            assert (fast.tokens, fast.stop) == (plain.tokens, plain.stop)
            assert fast.state.lengths.tolist() == plain.state.lengths.tolist() == [len(PROMPT) + count - 1]
    for token in set(whole):
        plain, fast = (generate(model, PROMPT, max_new_tokens=40, eos_ids={token}, draft=d) for d in (False, True))
        assert (fast.tokens, fast.stop) == (plain.tokens, plain.stop) == (fast.tokens, Stop.EOS)
        assert fast.state.lengths.tolist() == plain.state.lengths.tolist()


def test_drafts_stay_within_the_context(model: OnnxModel) -> None:
    loop = BufferedModel(model, max_length=2048)
    fast = generate(loop, [1] * 2040, max_new_tokens=50, draft=True)
    assert (fast.stop, len(fast.tokens)) == (Stop.CONTEXT, 9) and fast.drafted > 0
    assert fast.tokens == generate(model, [1] * 2040, max_new_tokens=50).tokens


@pytest.mark.parametrize("buffered", [False, True])
def test_an_interruption_within_a_run_of_drafts_loses_nothing(model: OnnxModel, buffered: bool) -> None:
    loop: Any = BufferedModel(model) if buffered else model
    expected = generate(model, PROMPT, max_new_tokens=30).tokens
    for strike in range(1, 25):
        seen: list[int] = []

        def interrupt(token: int, strike: int = strike, seen: list[int] = seen) -> None:
            seen.append(token)
            if len(seen) == strike:
                raise KeyboardInterrupt

        got = generate(loop, PROMPT, max_new_tokens=30, on_token=interrupt, draft=True)
        assert (got.stop, got.tokens) == (Stop.INTERRUPTED, expected[:strike])
        held = int(got.state.lengths[0])
        assert len(PROMPT) <= held < len(PROMPT) + strike, "nothing but what was answered"
        rest = generate(loop, PROMPT + got.tokens, max_new_tokens=30 - strike, state=got.state, draft=True)
        assert rest.tokens == expected[strike:]


def test_a_file_without_drafts_answers_plainly(tmp_path: Path) -> None:
    last = OnnxModel(write_standin(tmp_path, logits="last"), threads=1)
    found = generate(last, PROMPT, max_new_tokens=9, draft=True)
    assert found.drafted == 0 and found.tokens == generate(last, PROMPT, max_new_tokens=9).tokens


def test_what_followed_the_longest_suffix_is_proposed() -> None:
    proposer = NgramDrafts([5, 0, 1, 2, 3, 4, 8, 8, 9, 2, 3, 6, 7, 0, 1, 2, 3], 2)
    assert proposer.propose(9) == [4, 8], "0 1 2 3 was followed by 4 8; the later 2 3, by 6 7, is shorter"
    assert proposer.propose(1) == [4] and proposer.propose(0) == []
    assert NgramDrafts([1, 2, 3, 4, 5], 2).propose(2) == [] and NgramDrafts([1], 2).propose(2) == []
    assert NgramDrafts([1, 2, 9, 1, 2, 9, 1, 2], 1).propose(2) == [9], "twice the same"
    assert NgramDrafts([1, 2, 9, 1, 2, 7, 1, 2], 1).propose(2) == [], "once this and once that: a guess in the dark"
    assert NgramDrafts([5, 2, 9, 6, 2, 9, 4, 7, 2], 1).propose(2) == [9], "a suffix of one token, if it says the same"
    assert NgramDrafts([6, 6, 6], 6).propose(6) == [6], "no more than is known to follow"


@pytest.mark.parametrize("most", [2, 6])
def test_wrong_drafts_cost_no_more_than_the_budget(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worst that can be: every suffix promises the most, nothing comes true, and nothing is learned from it."""
    monkeypatch.setattr(NgramDrafts, "_suffix", lambda self, room: ((2 * len(policy.ONCE) - 1,) * room, 0))
    proposer, spent = NgramDrafts([1, 2, 3, 4, 5, 6, 7, 8], most), 0.0
    right, seen = list(proposer._right), list(proposer._seen)
    for step in range(2000):
        drafts = proposer.propose(9)
        spent += COST * len(drafts)
        proposer.push(step)
        proposer.settle(0)
        proposer._right, proposer._seen = list(right), list(seen)
        assert spent <= FIRST_BUDGET + BUDGET_RATE * (step + 1) + 1e-9
    assert proposer.drafted > 50 and proposer.accepted == 0


def test_odds_follow_what_happens() -> None:
    """Where copies go on as their source does, more is drafted; where they do not, nothing soon; and what was not
    drafted counts, too, so that it is tried again once it would have come true."""
    text = list(range(1000, 1400))
    proposer = NgramDrafts(text, 2)

    def step(source: int, copies: bool) -> int:
        """Two tokens of the text, and then what follows there, or something new; how many drafts there were."""
        for token in text[source : source + 2]:
            proposer.propose(0)
            proposer.push(token)
            proposer.settle(0)
        proposer._budget = MAX_BUDGET
        drafts = proposer.propose(2)
        following = text[source + 2 : source + 4] if copies else [source]
        right = len(drafts) if copies else 0
        for token in following[: right + 1]:
            proposer.push(token)
        proposer.settle(right)
        return len(drafts)

    assert step(0, copies=False) > 0
    assert [step(4 * n, copies=False) for n in range(1, 30)][-5:] == [0] * 5
    assert [step(4 * n, copies=True) for n in range(30, 90)][-5:] == [2] * 5


def test_a_copied_answer_is_drafted_in_full_after_a_few_tokens() -> None:
    text = [int(token) for token in np.random.default_rng(0).permutation(2000)[:300]]
    proposer = NgramDrafts(text, 2)
    steps, place = 0, 2
    proposer.push(text[0])
    proposer.push(text[1])
    while place < 300:
        drafts = proposer.propose(300 - place)
        right = next((n for n, token in enumerate(drafts) if text[place + n : place + n + 1] != [token]), len(drafts))
        for token in text[place : place + right + 1]:
            proposer.push(token)
        proposer.settle(right)
        place, steps = place + right + 1, steps + 1
    assert steps <= 105 and proposer.accepted >= 190
    assert proposer._budget == MAX_BUDGET


def test_each_kind_of_suffix_has_its_own_odds() -> None:
    once, alike = [[policy._kind(length, places, 1) for length in (1, 2, 3, 4, 5, 7, 8, 99)] for places in (1, 2)]
    assert once == [0, 1, 2, 2, 3, 3, 4, 4] and alike == [5 + kind for kind in once]
    assert policy._kind(1, 2, 2) == policy._kind(9, 5, 3) == 10
    assert len(policy.ONCE) == len(policy.ALIKE) == len(policy.BOUNDS)
