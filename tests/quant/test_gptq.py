"""GPTQ: its own objective against rounding's and the weighted search's, the layout, and inputs that break a factor."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lfm2export.quant import dequantize
from lfm2export.quant.blocks import unpack
from lfm2export.quant.gptq import BLOCK, FactorError, factorize, objective, quantize_gptq
from lfm2export.quant.rounding import quantize_round
from lfm2export.quant.search import quantize_search
from lfm2export.weights import BlockFormat, QuantizedBlocks
from matmulnbits import read_by_onnxruntime
from problems import problem

Array = NDArray[np.float32]

FORMATS = [
    BlockFormat(bits, size, symmetric) for bits in (4, 8) for size in (16, 32, 128) for symmetric in (True, False)
]

formats = st.builds(
    BlockFormat, bits=st.sampled_from([4, 8]), block_size=st.sampled_from([16, 32]), symmetric=st.booleans()
)


def damped(hessian: Array, damping: float = 0.01) -> NDArray[np.float64]:
    exact = hessian.astype(np.float64)
    return exact + damping * exact.trace() / len(exact) * np.eye(len(exact))


def row_errors(weight: Array, blocks: QuantizedBlocks, format: BlockFormat, hessian: Array) -> NDArray[np.float64]:
    """e H e^T of each row in float64, by its definition."""
    error = (weight - dequantize(blocks, format, weight.shape[1])).astype(np.float64)
    found: NDArray[np.float64] = np.einsum("nk,kl,nl->n", error, damped(hessian), error)
    return found


def test_the_factor_is_one() -> None:
    _, hessian = problem(1, 70)
    factor = factorize(hessian)
    ordered = damped(hessian)[np.ix_(factor.order, factor.order)]
    np.testing.assert_allclose(factor.lower @ factor.lower.T, ordered, rtol=0, atol=1e-6 * ordered.max())
    np.testing.assert_array_equal(factor.lower, np.tril(factor.lower))
    assert (np.diff(np.diagonal(hessian)[factor.order]) >= 0).all()
    np.testing.assert_allclose(factor.importance, np.diagonal(damped(hessian)), rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    formats, st.integers(1, 5), st.integers(1, 90), st.integers(0, 99), st.integers(1, 200), st.sampled_from([0.1, 2.0])
)
def test_no_row_is_worse_than_by_rounding_or_weighted_search(
    format: BlockFormat, rows: int, columns: int, seed: int, tokens: int, spread: float
) -> None:
    """Also with fewer tokens than columns, where H alone is singular."""
    weight, hessian = problem(rows, columns, seed, tokens, spread)
    factor = factorize(hessian)
    mine = row_errors(weight, quantize_gptq(weight, format, factor), format, hessian)
    resolution = 1e-6 * float((weight**2).sum()) * float(damped(hessian).max())  # of float32 sums
    for other in (quantize_round(weight, format), quantize_search(weight, format, factor.importance)):
        assert (mine <= row_errors(weight, other, format, hessian) * (1 + 1e-4) + resolution * 1e-4).all()


@pytest.mark.parametrize("size", [32, 128])
def test_it_wins_what_it_should_on_correlated_inputs(size: int) -> None:
    weight, hessian = problem(64, 512, tokens=2000)
    format = BlockFormat(4, size, False)
    mine = row_errors(weight, quantize_gptq(weight, format, factorize(hessian)), format, hessian).sum()
    searched = row_errors(weight, quantize_search(weight, format, np.diagonal(hessian)), format, hessian).sum()
    assert mine < 0.8 * searched


def test_the_objective_is_what_its_definition_says() -> None:
    weight, hessian = problem(7, 16 * BLOCK + 9)
    np.testing.assert_allclose(
        objective(weight, factorize(hessian)), np.einsum("nk,kl,nl->n", weight, damped(hessian), weight), rtol=1e-4
    )


def test_without_correlation_it_is_the_weighted_search() -> None:
    """A diagonal H leaves nothing to make up for."""
    weight, _ = problem(9, 96)
    hessian = np.diag(np.random.default_rng(0).exponential(size=96)).astype(np.float32)
    factor = factorize(hessian)
    for format in FORMATS:
        mine, searched = quantize_gptq(weight, format, factor), quantize_search(weight, format, factor.importance)
        np.testing.assert_array_equal(mine.codes, searched.codes)
        np.testing.assert_array_equal(mine.scales, searched.scales)


def test_of_two_equal_inputs_only_the_sum_of_weights_counts() -> None:
    """x1 = x2 always: what the first column rounds off, the second takes over, so their sum is off by half a step."""
    random = np.random.default_rng(0)
    weight = np.zeros((200, 16), np.float32)
    weight[:, 0], weight[:, 1] = 0.7, -0.7  # the ends of the range
    weight[:, 2:4] = random.uniform(-0.3, 0.3, (200, 2))
    hessian = np.eye(16, dtype=np.float32)
    hessian[2:4, 2:4] = 1.0
    format, factor = BlockFormat(4, 16, True), factorize(hessian, 1e-4)
    mine, searched = quantize_gptq(weight, format, factor), quantize_search(weight, format, factor.importance)
    off, before = (
        np.abs((weight - dequantize(blocks, format, 16))[:, 2:4].sum(axis=1)) / np.abs(blocks.scales[:, 0])
        for blocks in (mine, searched)
    )
    assert (off <= 0.501).all()
    assert (before > 0.6).mean() > 0.1


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_onnxruntime_reads_what_was_quantized(format: BlockFormat) -> None:
    weight, hessian = problem(24, 200)
    blocks = quantize_gptq(weight, format, factorize(hessian))
    ours = dequantize(blocks, format, 200)
    np.testing.assert_allclose(read_by_onnxruntime(blocks, format, 200), ours, rtol=0, atol=1e-6)
    assert np.abs(ours - weight).max() < (0.1 if format.bits == 4 else 0.01)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_the_rest_of_a_last_block_dequantizes_to_zeros(format: BlockFormat) -> None:
    columns = 200 - format.block_size // 2 - 1
    weight, hessian = problem(5, columns)
    blocks = quantize_gptq(weight, format, factorize(hessian))
    whole = dequantize(blocks, format, format.blocks(columns) * format.block_size)
    np.testing.assert_array_equal(whole[:, columns:], 0)


def test_scales_are_those_of_the_weighted_search_whatever_the_order() -> None:
    """Static groups: activation order never reaches the file, which has no g_idx."""
    weight, hessian = problem(32, 256, spread=2.0)
    format, factor = BlockFormat(4, 32, False), factorize(hessian)
    mine, searched = quantize_gptq(weight, format, factor), quantize_search(weight, format, factor.importance)
    moved = (unpack(mine.codes, 4, 32) != unpack(searched.codes, 4, 32)).any(axis=(1, 2))
    assert moved.all()
    np.testing.assert_array_equal(mine.scales, searched.scales)


def test_rows_do_not_know_of_each_other() -> None:
    """Sums of products of another shape may differ in their last bit, which moves a code that was on the edge."""
    weight, hessian = problem(96, 160)
    format, factor = BlockFormat(4, 32, False), factorize(hessian)
    whole = quantize_gptq(weight, format, factor)
    for start, stop in ((0, 1), (1, 40), (40, 96)):
        piece = quantize_gptq(weight[start:stop], format, factor)
        assert (piece.codes == whole.codes[start:stop]).mean() > 0.999
        np.testing.assert_array_equal(piece.scales, whole.scales[start:stop])


def test_columns_that_no_input_reaches_are_rounded() -> None:
    weight, hessian = problem(8, 64)
    dead = np.arange(64) % 8 == 3
    hessian[dead] = 0
    hessian[:, dead] = 0
    format, factor = BlockFormat(4, 32, False), factorize(hessian)
    mine, searched = quantize_gptq(weight, format, factor), quantize_search(weight, format, factor.importance)
    codes, expected = (unpack(blocks.codes, 4, 32).reshape(8, -1) for blocks in (mine, searched))
    np.testing.assert_array_equal(codes[:, dead], expected[:, dead])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda hessian: hessian * np.nan, "mean square of the inputs is nan"),
        (lambda hessian: hessian * 0, "mean square of the inputs is 0"),
        (lambda hessian: hessian - 2 * np.diag(np.diagonal(hessian)) * (np.arange(64) == 9), "is not positive"),
    ],
)
def test_what_has_no_factor_is_said(spoil: object, said: str) -> None:
    _, hessian = problem(1, 64)
    with pytest.raises(FactorError, match=said):
        factorize(spoil(hessian).astype(np.float32))  # type: ignore[operator]


def test_the_factor_takes_the_memory_it_is_given_and_no_more(tmp_path: object) -> None:
    """H of an FFN of 10,752 takes 462 MB: one array beside it, in a file if need be."""
    import tracemalloc

    _, hessian = problem(1, 512)
    held = np.zeros((512, 512), np.float32)
    tracemalloc.start()
    factor = factorize(hessian, allocate=lambda shape: held)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert factor.lower is held
    assert peak < held.nbytes / 4


def test_every_quantizer_name_gives_the_same_blocks() -> None:
    weight, hessian = problem(4, 64)
    factor = factorize(hessian)
    format = BlockFormat(4, 32, False)
    rounding = quantize_gptq(weight, replace(format, quantizer="round"), factor)
    np.testing.assert_array_equal(rounding.codes, quantize_gptq(weight, format, factor).codes)
