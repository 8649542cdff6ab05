"""What may be taken for codes moved on purpose, and what may not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from lfm2export.quant import quantize
from lfm2export.quant.blocks import pack, unpack
from lfm2export.quant.gptq import factorize, quantize_gptq
from lfm2export.quant.moved import beyond
from lfm2export.weights import BlockFormat, QuantizedBlocks

Array = NDArray[np.float32]
Spoil = Callable[[QuantizedBlocks], QuantizedBlocks]

FORMATS = [BlockFormat(4, size, symmetric) for size in (16, 32, 128, 256) for symmetric in (True, False)]
ROW, BLOCK = 3, 1


@pytest.fixture(scope="module")
def weight() -> Array:
    return np.random.default_rng(0).standard_normal((96, 512), dtype=np.float32) * np.float32(0.02)


def gptq(weight: Array, format: BlockFormat) -> QuantizedBlocks:
    """On inputs of few directions and of different sizes, where it moves codes far."""
    random = np.random.default_rng(1)
    mixing = np.eye(512) + random.standard_normal((512, 512)) / 20
    inputs = random.standard_normal((2000, 512)) @ mixing * np.exp(0.5 * random.standard_normal(512))
    return quantize_gptq(weight, format, factorize((inputs.T @ inputs / 2000).astype(np.float32)))


def scaled(factor: float) -> Spoil:
    def spoil(blocks: QuantizedBlocks) -> QuantizedBlocks:
        scales = blocks.scales.copy()
        scales[ROW, BLOCK] *= np.float16(factor)
        return replace(blocks, scales=scales)

    return spoil


def shifted(by: int) -> Spoil:
    """Another zero point; where there is none, the codes."""

    def spoil(blocks: QuantizedBlocks) -> QuantizedBlocks:
        if blocks.zero_points is not None:
            zeros = unpack(blocks.zero_points, 4, blocks.scales.shape[1]).copy()
            zeros[ROW, BLOCK] = zeros[ROW, BLOCK] - by if zeros[ROW, BLOCK] >= by else zeros[ROW, BLOCK] + by
            return replace(blocks, zero_points=pack(zeros, 4))
        codes = unpack(blocks.codes, 4, 2 * blocks.codes.shape[-1]).astype(np.int16)
        codes[ROW, BLOCK] += by
        return replace(blocks, codes=pack(np.clip(codes, 0, 15).astype(np.uint8), 4))

    return spoil


def exchanged(blocks: QuantizedBlocks) -> QuantizedBlocks:
    codes = blocks.codes.copy()
    codes[ROW, [BLOCK - 1, BLOCK]] = codes[ROW, [BLOCK, BLOCK - 1]]
    return replace(blocks, codes=codes)


def reversed_order(blocks: QuantizedBlocks) -> QuantizedBlocks:
    codes = unpack(blocks.codes, 4, 2 * blocks.codes.shape[-1]).copy()
    codes[ROW, BLOCK] = codes[ROW, BLOCK, ::-1]
    return replace(blocks, codes=pack(codes, 4))


FAULTS: dict[str, Spoil] = {
    "scale times 4": scaled(4),
    "scale times 2": scaled(2),
    "scale times 1/2": scaled(0.5),
    "scale of the other sign": scaled(-1),
    "scale zero": scaled(0),
    "scale infinite": scaled(np.inf),
    "scale NaN": scaled(np.nan),
    "zero point off by one": shifted(1),
    "zero point off by three": shifted(3),
    "two blocks exchanged": exchanged,
    "order of a block reversed": reversed_order,
}


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_quantizers_stay_within(weight: Array, format: BlockFormat) -> None:
    """Nearest codes always; GPTQ but for a few blocks, whose rows calibration then quantizes otherwise."""
    assert not beyond(weight, quantize(weight, format), format).any()
    assert beyond(weight, gptq(weight, format), format).mean() < 0.01


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_one_block_is_beyond_and_nothing_else(weight: Array, format: BlockFormat, name: str) -> None:
    clean = gptq(weight, format)
    found = beyond(weight, FAULTS[name](clean), format) & ~beyond(weight, clean, format)
    assert found[ROW, BLOCK]
    assert found.sum() == (2 if name == "two blocks exchanged" else 1)


def test_a_transposed_matrix_is_beyond_throughout(weight: Array) -> None:
    square = np.ascontiguousarray(weight[:, :96])
    format = BlockFormat(4, 32, False)
    assert beyond(square, quantize(np.ascontiguousarray(square.T), format), format).mean() > 0.95


def test_blocks_of_zeros_are_not_beyond() -> None:
    zeros = np.zeros((2, 70), np.float32)
    assert not beyond(zeros, quantize(zeros, BlockFormat(4, 32, False)), BlockFormat(4, 32, False)).any()
