"""The measures: against naive formulas, and by properties that any input must keep."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lfm2export import measures
from lfm2export.measures import CacheMeasure, Mean, compare_cache, compare_logits, compare_text

V = 17
rows = hnp.arrays(np.float32, V, elements=st.floats(-50, 50, width=32))


def naive_kld(p: np.ndarray, q: np.ndarray) -> float:
    p, q = (np.exp(np.longdouble(x)) / np.exp(np.longdouble(x)).sum() for x in (p, q))
    return float((p * np.log(p / q)).sum())


@given(rows, rows)
def test_kld_is_the_formula_and_never_negative(reference: np.ndarray, artifact: np.ndarray) -> None:
    got = float(measures.kld(reference, artifact))
    assert got >= 0
    assert got == pytest.approx(naive_kld(reference, artifact), rel=1e-9, abs=1e-12)


@given(rows, st.floats(-100, 100))
def test_a_shift_of_all_logits_is_no_divergence(reference: np.ndarray, shift: float) -> None:
    assert float(measures.kld(reference, reference.astype(np.float64) + shift)) == pytest.approx(0, abs=1e-9)


@given(rows)
def test_equal_rows(row: np.ndarray) -> None:
    got = compare_logits(row, row)
    assert (got.max_abs, got.top1_equal, got.rank) == (0.0, True, 0)
    assert got.kld == 0
    assert got.cosine is None if not row.any() else got.cosine == pytest.approx(1, abs=1e-12)
    assert got.max_rel is None if not row.any() else got.max_rel == 0


@given(rows, rows)
def test_compared_rows(reference: np.ndarray, artifact: np.ndarray) -> None:
    got = compare_logits(reference, artifact)
    assert got.max_abs == np.abs(reference.astype(np.float64) - artifact).max()
    assert got.cosine is None or -1 <= got.cosine <= 1
    assert got.rank == (artifact > artifact[reference.argmax()]).sum()
    assert got.top1_equal == (reference.argmax() == artifact.argmax())
    assert not got.top1_equal or got.rank == 0
    best, second = np.sort(reference)[::-1][:2].tolist()
    assert got.margin == best - second
    assert got.margin is not None
    if got.margin > 2 * got.max_abs:
        assert got.top1_equal


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_non_finite_artifact_is_infinitely_far(bad: float) -> None:
    reference, artifact = np.arange(4.0), np.array([0, 1, bad, 3.0])
    got = compare_logits(reference, artifact)
    assert (got.max_abs, got.kld, got.rank, got.top1_equal, got.margin) == (math.inf, None, None, False, 1.0)
    with pytest.raises(ValueError, match="the reference's logits are not finite"):
        compare_logits(artifact, reference)
    text = compare_text(np.stack([reference] * 2), np.stack([artifact, reference]), np.array([1, 2]))
    assert text.kld.tolist() == [math.inf, 0]
    assert text.top1_equal.tolist() == [False, True]
    assert text.artifact_nll[0] == math.inf
    assert measures.perplexity(text.artifact_nll) == math.inf


def test_shapes_that_differ_are_an_error() -> None:
    for call in (
        lambda: compare_logits(np.zeros(3), np.zeros(4)),
        lambda: compare_cache(np.zeros((1, 2, 3)), np.zeros((1, 2, 4))),
        lambda: compare_cache(np.zeros((1, 2, 3, 4)), np.zeros((1, 2, 3, 4)), [4]),
        lambda: compare_cache(np.zeros((1, 2, 3, 4)), np.zeros((1, 2, 3, 4)), [1, 1]),
        lambda: compare_cache(np.zeros((2, 2, 3, 4)), np.zeros((1, 2, 3, 4)), [1, 1]),
        lambda: compare_cache(np.zeros((1, 2, 3, 4)), np.zeros((1, 1, 3, 4)), [2]),
        lambda: compare_text(np.zeros((2, 3)), np.zeros((2, 3)), np.zeros(3, np.int64)),
    ):
        with pytest.raises(ValueError, match=r"shape|fit|exceed"):
            call()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(0, 3), st.data())
def test_only_a_rows_own_slots_are_compared(lengths: list[int], spare: int, data: st.DataObject) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    slots = max(lengths)
    reference = random.normal(size=(len(lengths), 2, slots, 3)).astype(np.float32)
    artifact = random.normal(size=(len(lengths), 2, slots + spare, 3)).astype(np.float32)
    for row, length in enumerate(lengths):
        artifact[row, :, :length] = reference[row, :, :length]
        artifact[row, :, length:] = np.nan
    got = compare_cache(reference, artifact, lengths)
    if slots == 0:
        assert got == CacheMeasure(None, None, None)
        return
    assert got.max_abs == 0
    row = lengths.index(slots)
    artifact[row, 1, slots - 1, 2] += 0.5
    got = compare_cache(reference, artifact, lengths)
    assert got.max_abs == pytest.approx(0.5, abs=1e-6)
    assert got.where == (row, 1, slots - 1, 2)


def test_conv_states_and_half_precision() -> None:
    reference = np.arange(12, dtype=np.float32).reshape(1, 4, 3)
    artifact = reference.astype(np.float16)
    assert compare_cache(reference, artifact).max_abs == 0
    artifact[0, 2, 1] = np.inf
    assert compare_cache(reference, artifact) == CacheMeasure(math.inf, (0, 2, 1), 11.0)


@given(st.lists(st.floats(-1e3, 1e3), max_size=20))
def test_mean_and_standard_error(values: list[float]) -> None:
    got = measures.mean(values)
    assert got.count == len(values)
    if not values:
        assert got == Mean(None, None, 0)
        return
    assert got.mean == pytest.approx(sum(values) / len(values), abs=1e-9)
    if len(values) == 1:
        assert got.standard_error is None
    else:
        variance = sum((value - sum(values) / len(values)) ** 2 for value in values) / (len(values) - 1)
        assert got.standard_error == pytest.approx(math.sqrt(variance / len(values)), abs=1e-9)


@given(st.lists(st.floats(-9, 9), min_size=2, max_size=9), st.floats(-2, 2))
def test_paired_differences_see_past_the_spread(values: list[float], shift: float) -> None:
    got = measures.paired(values, [value + shift for value in values])
    assert got.mean == pytest.approx(shift, abs=1e-9)
    assert got.standard_error == pytest.approx(0, abs=1e-9)


def test_perplexity_of_a_uniform_model_is_the_vocabulary() -> None:
    uniform = np.zeros((5, V), np.float32)
    text = compare_text(uniform, uniform, np.arange(5))
    assert measures.perplexity(text.reference_nll) == pytest.approx(V)
    assert text.kld.tolist() == [0] * 5
    assert measures.perplexity([]) is None
    assert measures.perplexity([1e4]) == math.inf


@given(rows, rows)
def test_text_rows_equal_single_rows(reference: np.ndarray, artifact: np.ndarray) -> None:
    text = compare_text(np.stack([reference, artifact]), np.stack([artifact, artifact]), np.array([1, 2]))
    single = compare_logits(reference, artifact)
    assert text.kld[0] == single.kld
    assert bool(text.top1_equal[0]) == single.top1_equal
    assert text.reference_nll[0] == pytest.approx(-np.log(naive_softmax(reference)[1]), rel=1e-6, abs=1e-9)


def naive_softmax(row: np.ndarray) -> np.ndarray:
    powers = np.exp(np.longdouble(row) - np.longdouble(row.max()))
    return powers / powers.sum()
