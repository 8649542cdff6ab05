"""The block layout: packing, and dequantization against onnxruntime's own kernel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from lfm2export.quant import dequantize
from lfm2export.quant.blocks import code_bytes, pack, unpack, zero_point_bytes
from lfm2export.weights import BlockFormat, QuantizedBlocks
from matmulnbits import read_by_onnxruntime

FORMATS = [
    BlockFormat(bits, size, symmetric)
    for bits in (4, 8)
    for size in (16, 32, 64, 128, 256)
    for symmetric in (True, False)
]


def random_blocks(format: BlockFormat, rows: int, columns: int, seed: int = 0) -> QuantizedBlocks:
    """Every byte random, also those of the padding and of an odd last nibble."""
    generator = np.random.default_rng(seed)
    blocks = format.blocks(columns)
    codes = generator.integers(0, 256, (rows, blocks, code_bytes(format)), np.uint8)
    scales = generator.standard_normal((rows, blocks)).astype(np.float16)
    zeros = generator.integers(0, 256, (rows, zero_point_bytes(format, columns)), np.uint8)
    return QuantizedBlocks(codes, scales, None if format.symmetric else zeros)


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("columns", [256, 200, 3 * 128])
def test_dequantize_is_what_onnxruntime_multiplies_by(format: BlockFormat, columns: int) -> None:
    quantized = random_blocks(format, 24, columns)
    ours = dequantize(quantized, format, columns)
    assert ours.shape == (24, columns)
    np.testing.assert_allclose(read_by_onnxruntime(quantized, format, columns), ours, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_integer_kernels_read_the_same_layout(format: BlockFormat) -> None:
    """accuracy_level 4 quantizes the input to 8 bits, which the identity survives up to its scale's rounding."""
    quantized = random_blocks(format, 24, 256)
    ours = dequantize(quantized, format, 256)
    theirs = read_by_onnxruntime(quantized, format, 256, accuracy_level=4)
    np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-4 * float(np.abs(ours).max()))


@given(arrays(np.uint8, array_shapes(max_dims=3, max_side=17), elements=st.integers(0, 15)))
def test_four_bit_packing_round_trips(values: np.ndarray) -> None:
    packed = pack(values, 4)
    assert packed.shape == (*values.shape[:-1], -(-values.shape[-1] // 2))
    np.testing.assert_array_equal(unpack(packed, 4, values.shape[-1]), values)


def test_the_even_column_lies_in_the_low_nibble() -> None:
    np.testing.assert_array_equal(pack(np.array([1, 2, 3], np.uint8), 4), [0x21, 0x03])


def test_eight_bits_are_stored_as_they_are() -> None:
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    np.testing.assert_array_equal(unpack(pack(values, 8), 8, 3), values)
