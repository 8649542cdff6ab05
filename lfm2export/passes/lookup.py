"""Embedding lookup in a block-quantized table, from the very initializers that the head's MatMulNBits reads.

    ids [B, S] - Gather(codes) - BitShift(0, 4) - BitwiseAnd(15) - Cast - Sub(zero point) - Mul(Gather(scales)) - [B,
    S, H]

Eight bits need no unpacking. The portable form has kernels, or a fall-back, in every runtime; GatherBlockQuantized,
one operator instead, has none in the wasm build that Transformers.js loads by default.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lfm2export.contract import MICROSOFT
from lfm2export.passes.block_weights import BlockWeights
from lfm2export.passes.matching import Builder, NoMatch
from lfm2export.recipes import LookupKind


def rows(op: Builder, ids: ir.Value | None, table: BlockWeights, kind: LookupKind, *, half: bool) -> ir.Value:
    """ids [B, S] -> [B, S, H] in the activations' type."""
    if kind == "gather_block_quantized":
        return _cut(op, _gather_block_quantized(op, ids, table), table)
    block, blocks = table.format, table.format.blocks(table.columns)
    kind_of_float = ir.DataType.FLOAT16 if half else ir.DataType.FLOAT
    codes = op("Gather", table.codes, ids, axis=0)
    if block.bits == 4:
        codes = _unpacked(op, codes, [0, 0, blocks, block.block_size])
    if table.zero_points is None:
        one = op.constant(np.array(1, dtype=np.float16 if half else np.float32))
        centred = op("DequantizeLinear", codes, one, op.constant(np.array(block.zero_point, dtype=np.uint8)))
    else:
        zero = op("Cast", _zero_points(op, ids, table, blocks), to=kind_of_float)
        centred = op("Sub", op("Cast", codes, to=kind_of_float), zero)
    scales = op("Unsqueeze", op("Gather", table.scales, ids, axis=0), op.constant([3]))
    return _cut(op, op("Reshape", op("Mul", centred, scales), op.constant([0, 0, -1])), table)


def _cut(op: Builder, values: ir.Value, table: BlockWeights) -> ir.Value:
    """Without the padding of a last block that the row does not fill."""
    if table.columns % table.format.block_size == 0:
        return values
    return op("Slice", values, op.constant([0]), op.constant([table.columns]), op.constant([2]))


def _zero_points(op: Builder, ids: ir.Value | None, table: BlockWeights, blocks: int) -> ir.Value:
    """[B, S, blocks, 1]; an odd number of 4-bit zero points ends with a nibble of padding."""
    found = op("Gather", table.zero_points, ids, axis=0)
    if table.format.bits == 8:
        return op("Unsqueeze", found, op.constant([3]))
    found = _unpacked(op, found, [0, 0, blocks + blocks % 2, 1])
    return op("Slice", found, op.constant([0]), op.constant([blocks]), op.constant([2])) if blocks % 2 else found


def _unpacked(op: Builder, packed: ir.Value, shape: list[int]) -> ir.Value:
    """4-bit codes one a byte, low nibble first, reshaped to `shape`."""
    shifts = op.constant(np.array([0, 4], dtype=np.uint8))
    shifted = op("BitShift", op("Unsqueeze", packed, op.constant([-1])), shifts, direction="RIGHT")
    return op("Reshape", op("BitwiseAnd", shifted, op.constant(np.array(15, dtype=np.uint8))), op.constant(shape))


def _gather_block_quantized(op: Builder, ids: ir.Value | None, table: BlockWeights) -> ir.Value:
    block = table.format
    if table.zero_points is not None:
        raise NoMatch(
            "GatherBlockQuantized reads zero points in another layout than MatMulNBits; use a symmetric table"
        )
    scales = op("Unsqueeze", table.scales, op.constant([2]))
    rows = op(
        "GatherBlockQuantized",
        table.codes,
        ids,
        scales,
        domain=MICROSOFT,
        bits=block.bits,
        block_size=block.block_size,
        gather_axis=0,
        quantize_axis=2,
    )
    return op("Reshape", rows, op.constant([0, 0, -1]))
