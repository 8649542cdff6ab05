"""Sampling against transformers' own logits processors, value by value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lfm2export.errors import PromptError
from lfm2export.generation import sampling
from lfm2export.generation.sampling import CARD, GREEDY, Sampler, Sampling, process

VOCAB = 32
logits = hnp.arrays(np.float32, VOCAB, elements=st.floats(-30, 30, width=32))
histories = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20)


def theirs(processor: object, scores: np.ndarray, tokens: list[int]) -> np.ndarray:
    return processor(torch.tensor([tokens]), torch.from_numpy(scores.copy())[None])[0].numpy()  # type: ignore[operator]


@given(logits, histories, st.floats(0.1, 3.0))
def test_repetition_penalty(scores: np.ndarray, tokens: list[int], penalty: float) -> None:
    got = sampling.repetition_penalty(scores, tokens, penalty)
    np.testing.assert_allclose(
        got, theirs(RepetitionPenaltyLogitsProcessor(penalty), scores, tokens), rtol=2e-7, atol=0
    )


@given(logits, st.floats(0.01, 5.0))
def test_temperature(scores: np.ndarray, value: float) -> None:
    got = sampling.temperature(scores, value)
    np.testing.assert_allclose(got, theirs(TemperatureLogitsWarper(value), scores, [0]), rtol=2e-7, atol=0)


@given(logits, st.integers(1, VOCAB + 5))
def test_top_k(scores: np.ndarray, count: int) -> None:
    np.testing.assert_array_equal(sampling.top_k(scores, count), theirs(TopKLogitsWarper(count), scores, [0]))


def spread(scores: np.ndarray, threshold: np.ndarray, values: np.ndarray) -> bool:
    """No value lies within float32 rounding of the threshold, where two softmaxes may disagree."""
    return bool((np.abs(values - threshold) > 1e-6).all())


@given(logits, st.floats(0.01, 1.0))
def test_min_p(scores: np.ndarray, fraction: float) -> None:
    probabilities = sampling.softmax(scores.astype(np.float64))
    if spread(scores, fraction * probabilities.max(), probabilities[probabilities < probabilities.max()]):
        np.testing.assert_array_equal(sampling.min_p(scores, fraction), theirs(MinPLogitsWarper(fraction), scores, [0]))


@given(hnp.arrays(np.float32, VOCAB, elements=st.floats(-30, 30, width=32), unique=True), st.floats(0.01, 0.999))
def test_top_p(scores: np.ndarray, mass: float) -> None:
    cumulative = np.cumsum(sampling.softmax(np.sort(scores).astype(np.float64)))
    if spread(scores, np.float64(1 - mass), cumulative):
        np.testing.assert_array_equal(sampling.top_p(scores, mass), theirs(TopPLogitsWarper(mass), scores, [0]))


@settings(max_examples=50)
@given(hnp.arrays(np.float32, VOCAB, elements=st.floats(-10, 10, width=32), unique=True), histories)
def test_the_whole_chain_in_transformers_order(scores: np.ndarray, tokens: list[int]) -> None:
    chain = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(1.05),
            TemperatureLogitsWarper(0.3),
            TopKLogitsWarper(20),
            TopPLogitsWarper(0.9),
            MinPLogitsWarper(0.15),
        ]
    )
    got = process(scores, tokens, Sampling(temperature=0.3, min_p=0.15, repetition_penalty=1.05, top_k=20, top_p=0.9))
    expected = theirs(chain, scores, tokens)
    both = np.isfinite(got) & np.isfinite(expected)
    assert both.any()
    np.testing.assert_allclose(got[both], expected[both], rtol=1e-6, atol=0)
    assert (np.isfinite(got) != np.isfinite(expected)).sum() <= 1  # a token within rounding of a threshold


@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty`")
def test_the_order_is_the_one_that_generate_builds() -> None:
    """If a later transformers reorders its processors, this says so."""
    from transformers import GenerationConfig, Lfm2Config, Lfm2ForCausalLM

    config = Lfm2Config(
        vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, full_attn_idxs=[0],
    )  # fmt: skip
    with torch.device("meta"):
        model = Lfm2ForCausalLM(config)
    asked = GenerationConfig(
        do_sample=True, temperature=0.3, min_p=0.15, repetition_penalty=1.05, top_k=20, top_p=0.9, num_beams=1
    )
    built = [type(processor).__name__ for processor in model._get_logits_processor(generation_config=asked)]
    assert built == [
        "RepetitionPenaltyLogitsProcessor",
        "TemperatureLogitsWarper",
        "TopKLogitsWarper",
        "TopPLogitsWarper",
        "MinPLogitsWarper",
    ]


@given(logits, histories)
def test_greedy_takes_the_best_and_ignores_the_seed(scores: np.ndarray, tokens: list[int]) -> None:
    assert Sampler(GREEDY, seed=1)(scores, tokens) == int(np.argmax(scores))


def test_equal_seeds_draw_equally_and_the_seed_is_told() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(50, VOCAB)).astype(np.float32)
    warm = Sampling(temperature=1.0)
    first, second, other = Sampler(warm, 5), Sampler(warm, 5), Sampler(warm, 6)
    drawn = [first(row, [0]) for row in rows]
    assert drawn == [second(row, [0]) for row in rows]
    assert drawn != [other(row, [0]) for row in rows]
    fresh = Sampler(warm)
    again = Sampler(warm, fresh.seed)
    assert [fresh(row, [0]) for row in rows] == [again(row, [0]) for row in rows]


def test_draws_follow_the_probabilities() -> None:
    scores = np.log(np.array([0.5, 0.3, 0.2, 1e-30], np.float32))
    sampler = Sampler(Sampling(temperature=1.0), seed=3)
    counts = np.bincount([sampler(scores, [3]) for _ in range(4000)], minlength=4)
    np.testing.assert_allclose(counts / 4000, [0.5, 0.3, 0.2, 0.0], atol=0.03)  # 4 standard errors


@given(logits, st.integers(0, 1000))
def test_a_removed_token_is_never_drawn(scores: np.ndarray, seed: int) -> None:
    kept = np.isfinite(process(scores, [0], CARD))
    assert kept[Sampler(CARD, seed)(scores, [0])]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"top_p": -0.1}, "top_p is -0.1"),
        ({"top_k": -1}, "top_k is -1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        Sampling(**values)  # type: ignore[arg-type]
