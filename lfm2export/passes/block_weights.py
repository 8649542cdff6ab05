"""A block-quantized matrix in the graph: its initializers, and the operator that multiplies with them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from lfm2export.contract import MICROSOFT
from lfm2export.passes.matching import Builder
from lfm2export.recipes import DEFAULT_ACCURACY, AccuracyLevel
from lfm2export.weights import BlockFormat, Recipe, stacked_name


@dataclass(frozen=True)
class BlockWeights:
    """A matrix [N, K] in blocks: its three initializers, scales in the activations' type."""

    codes: ir.Value
    scales: ir.Value
    zero_points: ir.Value | None
    format: BlockFormat
    rows: int
    columns: int
    accuracy_level: AccuracyLevel = DEFAULT_ACCURACY


def quantized(
    op: Builder,
    recipe: Recipe,
    block: BlockFormat,
    *,
    half: bool,
    accuracy_level: AccuracyLevel = DEFAULT_ACCURACY,
) -> BlockWeights:
    """The initializers of `recipe` (a matrix, stored either way round) in `block` format."""
    rows, columns = recipe.shape if not recipe.transpose else recipe.shape[::-1]
    blocks = block.blocks(columns)
    name = stacked_name(recipe.parts)
    base = replace(recipe, transpose=False, block=block)
    code_bytes = block.block_size * block.bits // 8
    codes = op.weight(
        f"{name}.codes", replace(base, component="codes", dtype="UINT8", shape=(rows, blocks, code_bytes))
    )
    scales = op.weight(f"{name}.scales", replace(base, component="scales", dtype="FLOAT16", shape=(rows, blocks)))
    zero_points = None
    if not block.symmetric:
        shape = (rows, -(-blocks * block.bits // 8))
        zero_points = op.weight(
            f"{name}.zero_points", replace(base, component="zero_points", dtype="UINT8", shape=shape)
        )
    if not half:
        scales = op("Cast", scales, to=ir.DataType.FLOAT)
    return BlockWeights(codes, scales, zero_points, block, rows, columns, accuracy_level)


def matmul(op: Builder, x: ir.Value | None, weights: BlockWeights) -> ir.Value:
    """x [B, S, K] -> [B, S, N]."""
    return op(
        "MatMulNBits",
        x,
        weights.codes,
        weights.scales,
        *([weights.zero_points] if weights.zero_points is not None else []),
        domain=MICROSOFT,
        K=weights.columns,
        N=weights.rows,
        bits=weights.format.bits,
        block_size=weights.format.block_size,
        accuracy_level=weights.accuracy_level,
    )
