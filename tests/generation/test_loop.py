"""The loop: greedy against the card's own loop, why it stops, and interruptions."""

from __future__ import annotations

import signal
from typing import Any

import numpy as np
import pytest

from lfm2export.errors import PromptError
from lfm2export.generation.loop import Stop, generate
from lfm2export.generation.sampling import Sampler, Sampling
from lfm2export.runtime import BufferedModel, OnnxModel
from standin import write_standin

PROMPT = [3, 1, 4, 1, 5, 9]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    return OnnxModel(write_standin(tmp_path_factory.mktemp("standin")), threads=1)


def by_hand(model: OnnxModel, prompt: list[int], count: int) -> list[int]:
    """The model card's loop: everything is prefilled, then argmax after argmax."""
    answer: list[int] = []
    for _ in range(count):
        logits, _ = model.step(np.array([prompt + answer]), model.new_state())
        answer.append(int(logits[0, -1].argmax()))
    return answer


def test_greedy_equals_full_prefill_at_every_step_in_both_loops(model: OnnxModel) -> None:
    expected = by_hand(model, PROMPT, 20)
    seen: list[int] = []
    got = generate(model, PROMPT, max_new_tokens=20, on_token=seen.append)
    assert got.tokens == seen == expected
    assert generate(BufferedModel(model), PROMPT, max_new_tokens=20).tokens == expected
    assert got.stop is Stop.LENGTH
    assert got.prefilled == 6
    assert got.state.lengths.tolist() == [6 + 19]
    assert got.prefill_rate and got.prefill_rate > 0 and got.decode_rate and got.decode_rate > 0


def test_it_stops_at_a_stop_token_and_keeps_it(model: OnnxModel) -> None:
    expected = by_hand(model, PROMPT, 20)
    stop = expected[3]
    got = generate(model, PROMPT, max_new_tokens=20, eos_ids={stop})
    assert got.stop is Stop.EOS
    assert got.tokens == expected[: expected.index(stop) + 1]


def test_one_token_has_no_decode_rate(model: OnnxModel) -> None:
    got = generate(model, PROMPT, max_new_tokens=1)
    assert got.decode_rate is None
    assert len(got.tokens) == 1


def test_it_stops_at_the_length_that_the_tokenizer_states(model: OnnxModel) -> None:
    got = generate(model, PROMPT, max_new_tokens=50, length=len(PROMPT) + 3)
    assert (got.stop, len(got.tokens)) == (Stop.DEFAULT_LENGTH, 3)
    longer = generate(model, PROMPT, max_new_tokens=5, length=len(PROMPT))
    assert (longer.stop, len(longer.tokens)) == (Stop.LENGTH, 5), "a prompt as long as that is answered all the same"


def test_it_stops_at_the_context_length(model: OnnxModel) -> None:
    prompt = [1] * 2045
    got = generate(BufferedModel(model), prompt, max_new_tokens=50)
    assert got.stop is Stop.CONTEXT
    assert len(got.tokens) == 4  # the last one comes from the last position and is not fed
    with pytest.raises(PromptError, match="2049 tokens, expected at most 2048"):
        generate(model, [1] * 2049, max_new_tokens=1)


def test_a_kept_state_is_not_fed_again(model: OnnxModel) -> None:
    for loop in (model, BufferedModel(model)):
        first = generate(loop, PROMPT, max_new_tokens=3)  # type: ignore[arg-type, var-annotated]
        longer = [*PROMPT, *first.tokens, 7, 8]
        second = generate(loop, longer, max_new_tokens=5, state=first.state)  # type: ignore[arg-type]
        assert second.prefilled == 3  # the last token of the answer was not fed yet
        assert second.tokens == by_hand(model, longer, 5)


@pytest.mark.parametrize("buffered", [False, True])
def test_an_interruption_returns_what_there_is_and_the_state_stays_usable(model: OnnxModel, buffered: bool) -> None:
    loop = BufferedModel(model) if buffered else model
    expected = by_hand(model, PROMPT, 12)

    def interrupt(token: int) -> None:
        seen.append(token)
        if len(seen) == 5:
            raise KeyboardInterrupt

    seen: list[int] = []
    got = generate(loop, PROMPT, max_new_tokens=12, on_token=interrupt)  # type: ignore[arg-type, var-annotated]
    assert got.stop is Stop.INTERRUPTED
    assert got.tokens == expected[:5]
    resumed = generate(loop, PROMPT + got.tokens, max_new_tokens=7, state=got.state)  # type: ignore[arg-type]
    assert resumed.tokens == expected[5:]


@pytest.mark.parametrize("buffered", [False, True])
def test_an_interruption_at_any_moment_loses_nothing(model: OnnxModel, buffered: bool) -> None:
    """A timer strikes inside steps, between them, and while buffers grow; what was held goes on as if nothing was."""
    loop: Any = BufferedModel(model) if buffered else model
    expected = generate(model, PROMPT, max_new_tokens=300).tokens

    def strike(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, strike)
    try:
        for milliseconds in range(1, 40, 2):
            try:
                signal.setitimer(signal.ITIMER_REAL, milliseconds / 1000)
                got = generate(loop, PROMPT, max_new_tokens=300)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                continue  # it struck before the loop began, or after it ended
            assert got.tokens == expected[: len(got.tokens)]
            rest = 300 - len(got.tokens)
            fed = int(got.state.lengths[0])
            if rest and fed < len(PROMPT) + len(
                got.tokens
            ):  # else it struck between a step and the choice of its token
                resumed = generate(loop, PROMPT + got.tokens, max_new_tokens=rest, state=got.state)
                assert got.tokens + resumed.tokens == expected
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_interruption_inside_the_first_step(model: OnnxModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "step", interrupted)
    got = generate(model, PROMPT, max_new_tokens=3)
    assert (got.tokens, got.stop, got.prefill_rate) == ([], Stop.INTERRUPTED, None)


@pytest.mark.parametrize("buffered", [False, True])
def test_a_long_prompt_is_fed_in_pieces_and_may_be_interrupted_between_them(
    model: OnnxModel, monkeypatch: pytest.MonkeyPatch, buffered: bool
) -> None:
    loop: Any = BufferedModel(model) if buffered else model
    prompt = np.random.default_rng(4).integers(0, 40, 1200).tolist()
    expected = by_hand(model, prompt, 6)
    fed: list[int] = []
    step = loop.step

    def watched(tokens: np.ndarray, state: Any) -> Any:
        if len(fed) == strike_at:
            raise KeyboardInterrupt
        fed.append(tokens.shape[1])
        return step(tokens, state)

    strike_at: int | None = 2
    monkeypatch.setattr(loop, "step", watched)
    half = generate(loop, prompt, max_new_tokens=6)
    assert half.stop is Stop.INTERRUPTED and half.tokens == [] and half.state.lengths.tolist() == [1024]
    strike_at = None
    assert generate(loop, prompt, max_new_tokens=6, state=half.state).tokens == expected
    assert generate(loop, prompt, max_new_tokens=6).tokens == expected
    assert fed == [512, 512, 176, *[1] * 5, 512, 512, 176, *[1] * 5]


def test_sampling_is_reproducible(model: OnnxModel) -> None:
    warm = Sampling(temperature=1.0, repetition_penalty=1.2)
    runs = [generate(model, PROMPT, max_new_tokens=15, sampler=Sampler(warm, 9)).tokens for _ in range(2)]
    assert runs[0] == runs[1] != generate(model, PROMPT, max_new_tokens=15).tokens


@pytest.mark.parametrize(
    ("tokens", "count", "message"), [([], 1, "the prompt has no tokens"), ([1], 0, "max_new_tokens is 0")]
)
def test_prompts_that_cannot_be_used(model: OnnxModel, tokens: list[int], count: int, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        generate(model, tokens, max_new_tokens=count)
