"""What both quantizers share: blocks as columns, codes on a grid, and the loop over chunks that stay in cache.

A chunk of rows [R, K] is turned into `columns` [S, n], n = R * G: one block per column, so that every per-block number
is a contiguous vector that broadcasts over the first axis, and every sum over a block is a sum of S vectors. numpy's
loops then run at the speed of the second-level cache: about 0.9 ns per weight and candidate on one core of a server of
2023.

A grid is a scale s (a float16 number, held in float32) and an integer zero point z per block. Its codes are kept
signed, `d = clip(round(w / s), -z, levels - z)`, so w ~ s * d and padding with zeros adds nothing to any sum.
A zero scale (the block is zero, or too small for float16) gives d = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lfm2export.errors import TensorError
from lfm2export.quant.blocks import code_bytes, pack
from lfm2export.weights import BlockFormat, QuantizedBlocks

Array = NDArray[np.float32]

HALF_MAX = 65504.0
#: Smaller scales round to zero in float16.
HALF_TINY = 2.0**-25

#: Weights in a chunk: block columns and codes (2 x 640 kB) fit a 2 MB cache; from 64 k to 256 k costs 15 % at most.
CHUNK_WEIGHTS = 5 << 15


@dataclass
class Grid:
    """scale and zero_point float32 [n]; the zero point is an integer, the scale a float16 number."""

    scale: Array
    zero_point: Array

    def replace(self, better: NDArray[np.bool_], other: Grid) -> None:
        """Take `other` where `better` [n]."""
        np.copyto(self.scale, other.scale, where=better)
        np.copyto(self.zero_point, other.zero_point, where=better)


@dataclass(frozen=True)
class Chunk:
    """Blocks to quantize.

    columns [S, n]; low and high [n]: the least and greatest value of each block, 0 included, for a grid always holds 0;
    importance [S, n] or None: the weight of each squared error; scratch [S, n]: free for any use.
    """

    columns: Array
    low: Array
    high: Array
    importance: Array | None
    scratch: Array
    format: BlockFormat

    @property
    def levels(self) -> int:
        return (1 << self.format.bits) - 1


#: Chooses a grid for every block of a chunk; leaves the codes of the grid it returns in `codes` [S, n].
Choose = Callable[[Chunk, Array], Grid]


def to_half(scale: Array) -> Array:
    """`scale` rounded to the nearest float16, and limited to the largest, as float32."""
    return np.clip(scale, -HALF_MAX, HALF_MAX).astype(np.float16).astype(np.float32)


def encode(columns: Array, grid: Grid, levels: int, codes: Array) -> Array:
    """Signed codes [S, n] of `columns` on `grid`, written to `codes`: the nearest point to each weight."""
    inverse = np.divide(1.0, grid.scale, out=np.zeros_like(grid.scale), where=np.abs(grid.scale) > HALF_TINY)
    np.multiply(columns, inverse, out=codes)
    np.rint(codes, out=codes)
    np.maximum(codes, -grid.zero_point, out=codes)
    np.minimum(codes, levels - grid.zero_point, out=codes)
    return codes


def squared_error(chunk: Chunk, grid: Grid, codes: Array) -> Array:
    """sum over the block of importance * (w - s * d)**2, [n]; uses the chunk's scratch buffer."""
    difference = chunk.scratch
    np.multiply(codes, grid.scale, out=difference)
    np.subtract(chunk.columns, difference, out=difference)
    if chunk.importance is None:
        return block_dot(difference, difference)
    np.multiply(difference, difference, out=difference)
    return block_dot(difference, chunk.importance)


def block_dot(a: Array, b: Array) -> Array:
    """sum of a * b over each block: [S, n], [S, n] -> [n]."""
    result: Array = np.einsum("sn,sn->n", a, b)
    return result


def quantize_chunks(
    weight: Array, format: BlockFormat, choose: Choose, importance: Array | None = None
) -> QuantizedBlocks:
    """`weight` [N, K] on the grids that `choose` picks; `importance` [K], nonnegative, weighs each column's error.

    Rows are independent of each other: any split of N gives the same bytes.

    Raises:
        TensorError: the weight holds NaN or Inf, or shapes do not fit.
    """
    rows, size = weight.shape[0], format.block_size
    blocks = format.blocks(weight.shape[1])
    column_weights = None if importance is None else _importance_blocks(importance, weight.shape[1], format)
    codes_out = np.empty((rows, blocks, code_bytes(format)), np.uint8)
    scales_out = np.empty((rows, blocks), np.float16)
    zeros_out = np.empty((rows, blocks), np.uint8)
    step = max(1, CHUNK_WEIGHTS // (blocks * size))
    buffers = [np.empty((size, min(step, rows) * blocks), np.float32) for _ in range(3)]
    saturated, largest = 0, 0.0
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        count = (stop - start) * blocks
        columns, codes, scratch = (buffer.reshape(-1)[: size * count].reshape(size, count) for buffer in buffers)
        _to_columns(weight[start:stop], blocks, columns)
        low, high = np.minimum.reduce(columns, initial=0), np.maximum.reduce(columns, initial=0)
        limited, magnitude = _limit(columns, low, high, format)
        saturated, largest = saturated + limited, max(largest, magnitude)
        tiled = None if column_weights is None else np.tile(column_weights, stop - start)
        chunk = Chunk(columns, low, high, tiled, scratch, format)
        grid = choose(chunk, codes)
        np.add(codes, grid.zero_point, out=codes)
        packed = pack(codes.astype(np.uint8).T, format.bits)
        codes_out[start:stop] = packed.reshape(stop - start, blocks, -1)
        scales_out[start:stop] = grid.scale.reshape(-1, blocks)
        zeros_out[start:stop] = grid.zero_point.reshape(-1, blocks)
    zero_points = None if format.symmetric else pack(zeros_out, format.bits)
    return QuantizedBlocks(codes_out, scales_out, zero_points, saturated, largest)


def _to_columns(weight: Array, blocks: int, columns: Array) -> None:
    """[R, K] -> [S, R * G], padded with zeros; block g of row r becomes column r * G + g."""
    rows, width = weight.shape
    size = columns.shape[0]
    view = columns.reshape(size, rows, blocks)
    full = width // size
    view[:, :, :full] = weight[:, : full * size].reshape(rows, full, size).transpose(2, 0, 1)
    if full < blocks:
        rest = width - full * size
        view[:rest, :, full] = weight[:, full * size :].T
        view[rest:, :, full] = 0


def _limit(columns: Array, low: Array, high: Array, format: BlockFormat) -> tuple[int, float]:
    """Limit values that no float16 scale reaches, in place; (blocks that held one, the greatest magnitude)."""
    magnitude = np.maximum(-low, high)
    largest = float(magnitude.max(initial=0.0))
    if not np.isfinite(largest):
        raise TensorError("a weight is NaN or Inf; a matrix must be finite to be quantized")
    limit = HALF_MAX * ((1 << format.bits) - 1) / 2
    if largest <= limit:
        return 0, 0.0
    for values in (columns, low, high):
        np.clip(values, -limit, limit, out=values)
    return int((magnitude > limit).sum()), largest


def _importance_blocks(importance: Array, columns: int, format: BlockFormat) -> Array:
    """[K] -> [S, G], scaled to mean 1; padding weighs 0."""
    total = float(importance.sum(dtype=np.float64))
    if importance.shape != (columns,) or not np.isfinite(total) or not (importance >= 0).all():
        raise TensorError(
            f"importance has shape {importance.shape}, expected ({columns},) with finite values of at least 0"
        )
    padded = np.zeros(format.blocks(columns) * format.block_size, np.float32)
    padded[:columns] = importance if total == 0 else importance * (columns / total)
    return np.ascontiguousarray(padded.reshape(-1, format.block_size).T)
