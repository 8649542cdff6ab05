"""Quantized blocks in the layout that com.microsoft MatMulNBits reads, and their exact dequantization.

Letters: N rows (output features), K columns (input features), S block_size, G = ceil(K / S) blocks per row.

    weight[n, k] = scales[n, g] * (code[n, k] - zero_point[n, g])        g = k // S

Codes lie row by row, block by block; a 4-bit byte holds the even column in its low nibble. A last block that K does not
fill holds codes equal to its zero point, so it dequantizes to zeros, whatever the reader does with them.
Source: the operator's schema in onnxruntime (docs/ContribOperators.md); the tests compare with its CPU kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfm2export.weights import BlockFormat, QuantizedBlocks


def in_blocks(matrix: NDArray[Any], size: int) -> NDArray[Any]:
    """[N, K] -> [N, G, S], with zeros behind."""
    rows, columns = matrix.shape
    rest = -columns % size
    whole = np.pad(matrix, ((0, 0), (0, rest))) if rest else matrix
    return whole.reshape(rows, -1, size)


def take_rows(first: QuantizedBlocks, second: QuantizedBlocks, rows: NDArray[np.bool_]) -> QuantizedBlocks:
    """The rows of `second` where `rows` [N] says so, else those of `first`; both of one format."""
    zeros = None
    if first.zero_points is not None and second.zero_points is not None:
        zeros = np.where(rows[:, None], second.zero_points, first.zero_points)
    codes = np.where(rows[:, None, None], second.codes, first.codes)
    scales = np.where(rows[:, None], second.scales, first.scales)
    return QuantizedBlocks(codes, scales, zeros, first.saturated, first.largest)


def join_rows(pieces: Sequence[QuantizedBlocks]) -> QuantizedBlocks:
    """Pieces of one format, one below the other."""
    zeros = [piece.zero_points for piece in pieces if piece.zero_points is not None]
    return QuantizedBlocks(
        np.concatenate([piece.codes for piece in pieces]),
        np.concatenate([piece.scales for piece in pieces]),
        np.concatenate(zeros) if zeros else None,
        sum(piece.saturated for piece in pieces),
        max(piece.largest for piece in pieces),
    )


def order_rows(blocks: QuantizedBlocks, order: NDArray[np.int64]) -> QuantizedBlocks:
    """Row order[i] as row i."""
    zeros = blocks.zero_points[order] if blocks.zero_points is not None else None
    return replace(blocks, codes=blocks.codes[order], scales=blocks.scales[order], zero_points=zeros)


def cut_rows(blocks: QuantizedBlocks, start: int, stop: int) -> QuantizedBlocks:
    """Rows [start, stop), as views."""
    zeros = blocks.zero_points[start:stop] if blocks.zero_points is not None else None
    return QuantizedBlocks(blocks.codes[start:stop], blocks.scales[start:stop], zeros)


def code_bytes(format: BlockFormat) -> int:
    """Bytes of one block's codes."""
    return format.block_size * format.bits // 8


def zero_point_bytes(format: BlockFormat, columns: int) -> int:
    """Bytes of one row's zero points."""
    return -(-format.blocks(columns) * format.bits // 8)


def row_bytes(format: BlockFormat, columns: int) -> int:
    """Bytes of one row's codes, scales and zero points."""
    zeros = 0 if format.symmetric else zero_point_bytes(format, columns)
    return format.blocks(columns) * (code_bytes(format) + 2) + zeros


def pack(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """[..., n] values below 2**bits -> [..., ceil(n * bits / 8)]; an odd nibble at the end is 0."""
    if bits == 8:
        return values
    low, high = values[..., 0::2], values[..., 1::2]
    packed = low.copy()
    packed[..., : high.shape[-1]] |= high << 4
    return packed


def unpack(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """[..., ceil(count * bits / 8)] -> [..., count] values below 2**bits."""
    if bits == 8:
        return packed[..., :count]
    values = np.stack([packed & 15, packed >> 4], axis=-1)
    return values.reshape(*packed.shape[:-1], -1)[..., :count]


def signed(codes: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Codes uint8 [N, 1, K] around 128 as int8 [N, K] around 0."""
    return (codes.reshape(len(codes), -1) ^ np.uint8(0x80)).view(np.int8)


def unsigned(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """int8 [N, K] -> uint8 [N, 1, K], as :func:`signed` had them."""
    return (np.ascontiguousarray(codes).view(np.uint8) ^ np.uint8(0x80))[:, None, :]


def dequantize(quantized: QuantizedBlocks, format: BlockFormat, columns: int) -> NDArray[np.float32]:
    """The float32 matrix [N, K] that MatMulNBits multiplies by; K is `columns`."""
    rows, blocks = quantized.scales.shape
    codes = unpack(quantized.codes, format.bits, format.block_size).astype(np.float32)  # [N, G, S]
    if quantized.zero_points is None:
        codes -= format.zero_point
    else:
        codes -= unpack(quantized.zero_points, format.bits, blocks)[..., None]
    codes *= quantized.scales.astype(np.float32)[..., None]
    return codes.reshape(rows, -1)[:, :columns]
