"""Both quantizers: error bounds, what they promise each other, and the values that break naive ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from lfm2export.errors import TensorError
from lfm2export.quant import QUANTIZERS, dequantize, quantize
from lfm2export.quant.blocks import unpack
from lfm2export.quant.grid import CHUNK_WEIGHTS, HALF_MAX
from lfm2export.weights import BlockFormat, Quantizer
from matmulnbits import read_by_onnxruntime

FORMATS = [
    BlockFormat(bits, size, symmetric)
    for bits in (4, 8)
    for size in (16, 32, 64, 128, 256)
    for symmetric in (True, False)
]

#: Of blocks within a row; "channel" takes a whole one, see test_channel.py.
BLOCK_QUANTIZERS = [name for name in QUANTIZERS if name != "channel"]

#: Half a step of a subnormal float16: what a scale can be off by however small it is.
HALF_SUBNORMAL = 2.0**-25

formats = st.builds(
    BlockFormat,
    bits=st.sampled_from([4, 8]),
    block_size=st.sampled_from([16, 32]),
    symmetric=st.booleans(),
)
# A few distinct magnitudes per draw make ties, constant blocks, zeros and outliers common.
weights = st.tuples(st.integers(1, 3), st.integers(1, 70), st.sampled_from([1e-9, 1e-4, 1.0, 30.0, 1e4])).flatmap(
    lambda drawn: arrays(
        np.float32,
        drawn[:2],
        elements=st.floats(-1, 1, width=32).map(lambda value, scale=drawn[2]: float(np.float32(value * scale))),
        fill=st.sampled_from([0.0, float(np.float32(0.02 * drawn[2]))]),
    )
)


def gaussian(rows: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, columns), dtype=np.float32) * np.float32(0.02)


def block_errors(weight: NDArray[np.float32], format: BlockFormat, importance: object = None) -> NDArray[np.float64]:
    """Squared error of each block [N, G], in float64."""
    columns = weight.shape[1]
    restored = dequantize(quantize(weight, format, importance), format, columns)  # type: ignore[arg-type]
    error = np.zeros((len(weight), format.blocks(columns) * format.block_size))
    scaling = 1.0 if importance is None else importance
    error[:, :columns] = (weight.astype(np.float64) - restored) ** 2 * scaling
    return error.reshape(len(weight), -1, format.block_size).sum(-1)


@settings(max_examples=200, deadline=None)
@given(weights, formats, st.sampled_from(["round", "search"]))
def test_every_value_lands_within_its_step(weight: NDArray[np.float32], format: BlockFormat, name: Quantizer) -> None:
    """Rounding: half a step of the block's range (a whole one at a symmetric end), plus the scale's rounding."""
    format = replace(format, quantizer=name)
    quantized = quantize(weight, format)
    restored = dequantize(quantized, format, weight.shape[1])
    assert np.isfinite(restored).all() and np.isfinite(quantized.scales).all()
    assert quantized.saturated == 0
    if name == "search":
        return
    padded = np.zeros((len(weight), format.blocks(weight.shape[1]) * format.block_size), np.float32)
    padded[:, : weight.shape[1]] = weight
    blocks = padded.reshape(len(weight), -1, format.block_size)
    levels = (1 << format.bits) - 1
    high, low = np.maximum(blocks.max(-1), 0).astype(np.float64), np.minimum(blocks.min(-1), 0).astype(np.float64)
    step = np.maximum(high, -low) / format.zero_point if format.symmetric else (high - low) / levels
    half_steps = 2 if format.symmetric else 1.5  # asymmetric: the zero point is rounded too
    bound = step * half_steps / 2 + levels * (step * 2.0**-11 + HALF_SUBNORMAL)
    worst = np.abs(padded - np.pad(restored, ((0, 0), (0, padded.shape[1] - restored.shape[1]))))
    assert (worst.reshape(blocks.shape).max(-1) <= bound * (1 + 1e-6)).all()


@settings(max_examples=300, deadline=None)
@given(weights, formats)
def test_search_is_never_worse_than_rounding_on_any_block(weight: NDArray[np.float32], format: BlockFormat) -> None:
    searched = block_errors(weight, replace(format, quantizer="search"))
    rounded = block_errors(weight, replace(format, quantizer="round"))
    resolution = 1e-12 * float(np.abs(weight).max()) ** 2  # of float32 arithmetic on a block
    assert (searched <= rounded * (1 + 1e-5) + resolution).all()


@settings(max_examples=100, deadline=None)
@given(weights, formats, st.integers(0, 9))
def test_weighted_search_is_never_worse_either(weight: NDArray[np.float32], format: BlockFormat, seed: int) -> None:
    importance = np.random.default_rng(seed).exponential(size=weight.shape[1]).astype(np.float32)
    importance[::5] = 0
    searched = block_errors(weight, replace(format, quantizer="search"), importance)
    rounded = block_errors(weight, replace(format, quantizer="round"), importance)
    resolution = 1e-12 * float(np.abs(weight).max()) ** 2 * float(importance.max())
    assert (searched <= rounded * (1 + 1e-5) + resolution).all()


@pytest.mark.parametrize(("symmetric", "size", "ratio"), [(True, 32, 0.90), (False, 32, 0.91), (False, 128, 0.90)])
def test_search_wins_what_it_should_on_gaussian_weights(symmetric: bool, size: int, ratio: float) -> None:
    weight = gaussian(64, 2048)
    searched = block_errors(weight, BlockFormat(4, size, symmetric, "search")).sum()
    rounded = block_errors(weight, BlockFormat(4, size, symmetric, "round")).sum()
    assert searched < ratio * rounded


def test_importance_moves_error_to_columns_that_do_not_matter() -> None:
    weight, format = gaussian(64, 256), BlockFormat(4, 32, False)
    importance = np.where(np.arange(256) % 8 == 0, 100, 1).astype(np.float32)
    plain = dequantize(quantize(weight, format), format, 256)
    weighted = dequantize(quantize(weight, format, importance), format, 256)
    important = importance > 1
    assert ((weighted - weight)[:, important] ** 2).sum() < 0.8 * ((plain - weight)[:, important] ** 2).sum()


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_padding_never_changes_the_result(format: BlockFormat) -> None:
    """The columns of whole blocks quantize to the same bytes whether a partial block follows or not."""
    whole = quantize(gaussian(8, 256), format)
    partial = quantize(gaussian(8, 256)[:, : 256 - format.block_size // 2 - 1], format)
    np.testing.assert_array_equal(partial.codes[:, :-1], whole.codes[:, :-1])
    np.testing.assert_array_equal(partial.scales[:, :-1], whole.scales[:, :-1])
    last = unpack(partial.codes[:, -1:], format.bits, format.block_size)[:, 0, format.block_size // 2 :]
    zeros = partial.zero_points
    expected = (
        np.full(8, format.zero_point) if zeros is None else unpack(zeros, format.bits, partial.scales.shape[1])[:, -1]
    )
    assert (last == expected[:, None]).all()


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_onnxruntime_reads_what_was_quantized(format: BlockFormat) -> None:
    weight = gaussian(16, 200)
    quantized = quantize(weight, format)
    ours = dequantize(quantized, format, 200)
    np.testing.assert_allclose(read_by_onnxruntime(quantized, format, 200), ours, rtol=0, atol=1e-6)
    assert np.abs(ours - weight).max() < (0.02 if format.bits == 4 else 0.001)


@pytest.mark.parametrize("name", BLOCK_QUANTIZERS)
def test_rows_do_not_know_of_each_other(name: Quantizer) -> None:
    """Any split of N gives the same bytes, also across the chunks of the loop."""
    rows = 2 * CHUNK_WEIGHTS // 1024 + 3
    weight, format = gaussian(rows, 1000), BlockFormat(4, 32, False, name)
    whole = quantize(weight, format)
    for start, stop in ((0, 1), (1, 7), (7, rows)):
        piece = quantize(weight[start:stop], format)
        assert piece.zero_points is not None and whole.zero_points is not None
        np.testing.assert_array_equal(piece.codes, whole.codes[start:stop])
        np.testing.assert_array_equal(piece.scales, whole.scales[start:stop])
        np.testing.assert_array_equal(piece.zero_points, whole.zero_points[start:stop])


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("name", BLOCK_QUANTIZERS)
def test_constant_and_zero_blocks(format: BlockFormat, name: Quantizer) -> None:
    format = replace(format, quantizer=name)
    weight = np.repeat(np.array([[0.0], [0.5], [-0.5]], np.float32), 128, axis=1)
    restored = dequantize(quantize(weight, format), format, 128)
    np.testing.assert_array_equal(restored[0], 0)
    np.testing.assert_allclose(restored, weight, rtol=2.0**-11, atol=0)


@pytest.mark.parametrize("name", BLOCK_QUANTIZERS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("magnitude", [1e-30, 1e-9, 3e-7])
def test_scales_too_small_for_float16_give_zeros_or_subnormals(
    name: Quantizer, symmetric: bool, magnitude: float
) -> None:
    weight = gaussian(4, 64) * np.float32(magnitude / 0.02)
    format = BlockFormat(4, 32, symmetric, name)
    restored = dequantize(quantize(weight, format), format, 64)
    assert np.isfinite(restored).all()
    exact = weight.astype(np.float64)
    assert ((restored - exact) ** 2).sum() <= (exact**2).sum()


@pytest.mark.parametrize("name", BLOCK_QUANTIZERS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("huge", [1e8, 3e38])
def test_scales_beyond_float16_are_limited_and_reported(
    name: Quantizer, bits: int, symmetric: bool, huge: float
) -> None:
    weight = gaussian(4, 64)
    weight[1, 40], weight[2, 3] = -huge, huge
    format = BlockFormat(bits, 32, symmetric, name)  # type: ignore[arg-type]
    quantized = quantize(weight, format)
    assert quantized.saturated == 2
    assert quantized.largest == np.float32(huge)
    restored = dequantize(quantized, format, 64)
    assert np.isfinite(restored).all()
    assert restored[2, 3] > HALF_MAX and restored[1, 40] < -HALF_MAX
    np.testing.assert_array_equal(restored[0], dequantize(quantize(weight[:1], format), format, 64)[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", BLOCK_QUANTIZERS)
def test_weights_that_are_not_finite_are_refused(bad: float, name: Quantizer) -> None:
    weight = gaussian(4, 64)
    weight[2, 5] = bad
    with pytest.raises(TensorError, match="NaN or Inf"):
        quantize(weight, BlockFormat(4, 32, True, name))


@pytest.mark.parametrize(
    ("weight", "importance"),
    [
        (gaussian(2, 64).reshape(-1), None),
        (gaussian(2, 64).astype(np.float64), None),
        (gaussian(2, 64), np.ones(63, np.float32)),
        (gaussian(2, 64), -np.ones(64, np.float32)),
        (gaussian(2, 64), np.full(64, np.nan, np.float32)),
    ],
    ids=["one axis", "float64", "importance too short", "negative", "not finite"],
)
def test_what_cannot_be_quantized_is_refused(weight: NDArray[np.float32], importance: NDArray[np.float32]) -> None:
    with pytest.raises(TensorError, match="expected"):
        quantize(weight, BlockFormat(4, 32, False), importance)
