"""Block quantization: projections become com.microsoft MatMulNBits, and the table is read in blocks by lookup and head.

    x, W [in, out] - MatMul - y       ->      x, codes, Cast(scales), zero_points - MatMulNBits - y
    ids, table - Gather - embedding   ->      ids - Gather(codes), Gather(Cast(scales)) - ... (see `lookup`)
    x - Reshape - Gemm(table) - Reshape - logits      ->      x, table's codes and scales - MatMulNBits - logits

Every projection fires, the lookup and the head. Scales are stored as float16 and cast where activations are float32,
which costs nothing at run time and saves a tenth of the file. accuracy_level 4 quantizes activations to 8 bits:
without it the CPU kernels are 3 times (4 bits) to 100 times (8 bits) slower.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import onnx_ir as ir

from lfm2export.contract import MICROSOFT
from lfm2export.passes import lookup
from lfm2export.passes.matching import Builder, Firing, NoMatch, expect, recipe_of, rewrite
from lfm2export.recipes import LookupKind
from lfm2export.spec import ModelSpec
from lfm2export.weights import BlockFormat, Recipe

ACCURACY_LEVEL = 4


@dataclass(frozen=True)
class BlockWeights:
    """A matrix [N, K] in blocks: its three initializers, scales in the activations' type."""

    codes: ir.Value
    scales: ir.Value
    zero_points: ir.Value | None
    format: BlockFormat
    rows: int
    columns: int


def quantized(op: Builder, recipe: Recipe, block: BlockFormat, *, half: bool) -> BlockWeights:
    """The initializers of `recipe` (a matrix, stored either way round) in `block` format."""
    rows, columns = recipe.shape if not recipe.transpose else recipe.shape[::-1]
    blocks = block.blocks(columns)
    name = recipe.parts[0] + "".join("+" + part.rsplit(".", 2)[-2] for part in recipe.parts[1:])
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
    return BlockWeights(codes, scales, zero_points, block, rows, columns)


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
        accuracy_level=ACCURACY_LEVEL,
    )


def projections_pass(block: BlockFormat, *, half: bool) -> Callable[[ir.Model, ModelSpec], Firing]:
    """Every MatMul with a weight."""

    def fuse(model: ir.Model, spec: ModelSpec) -> Firing:
        def attempt(node: ir.Node, op: Builder) -> None:
            recipe = recipe_of(node.inputs[1])
            if recipe.parts == ("lm_head.weight",):
                raise NoMatch("the head has the table's format")
            op.replace(node.outputs[0], matmul(op, node.inputs[0], quantized(op, recipe, block, half=half)))

        return rewrite(model, "MatMul", attempt)

    return fuse


def table_pass(block: BlockFormat, kind: LookupKind, *, half: bool) -> Callable[[ir.Model, ModelSpec], Firing]:
    """The embedding lookup and the head: one matrix if tied, two if not."""

    def fuse(model: ir.Model, spec: ModelSpec) -> Firing:
        def look_up(node: ir.Node, op: Builder) -> None:
            weights = quantized(op, recipe_of(node.inputs[0]), block, half=half)
            op.replace(node.outputs[0], lookup.rows(op, node.inputs[1], weights, kind, half=half))

        def head(node: ir.Node, op: Builder) -> None:
            if node.op_type == "Gemm":
                x = expect(node.inputs[0], "Reshape").inputs[0]
                out = next(iter(node.outputs[0].consumers())).outputs[0]
            else:
                x, out = node.inputs[0], node.outputs[0]
            weights = quantized(op, recipe_of(node.inputs[1]), block, half=half)
            op.replace(out, matmul(op, x, weights))

        firing = rewrite(model, "Gather", look_up)
        heads = rewrite(model, "Gemm" if spec.tie_word_embeddings else "MatMul", head)
        return Firing(firing.count + heads.count, firing.refusals + heads.refusals)

    return fuse
