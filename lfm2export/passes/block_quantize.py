"""Block quantization: projections become com.microsoft MatMulNBits, and the table is read in blocks by lookup and head.

    x, W [in, out] - MatMul - y       ->      x, codes, Cast(scales), zero_points - MatMulNBits - y
    x, [w1 | w3] - MatMul - Split     ->      x - MatMulNBits - gate;  x - MatMulNBits - up       (see `Formats.apart`)
    ids, table - Gather - embedding   ->      ids - Gather(codes), Gather(Cast(scales)) - ... (see `lookup`)
    x - Reshape - Gemm(table) - Reshape - logits      ->      x, table's codes and scales - MatMulNBits - logits

Every projection fires, the lookup and the head; each matrix may have a format of its own. Scales are stored as float16
and cast where activations are float32, which costs nothing at run time and saves a tenth of the file. accuracy_level 4
quantizes activations to 8 bits: without it the CPU kernels are 3 times (4 bits) to 100 times (8 bits) slower.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import onnx_ir as ir

from lfm2export.passes import lookup
from lfm2export.passes.block_weights import matmul, quantized
from lfm2export.passes.matching import Builder, Firing, NoMatch, expect, only_user, recipe_of, rewrite
from lfm2export.recipes import DEFAULT_ACCURACY, TABLES, AccuracyLevel, Formats, LookupKind
from lfm2export.spec import ModelSpec
from lfm2export.weights import BlockFormat, Recipe


def projections_pass(
    formats: Formats, *, half: bool, level: AccuracyLevel = DEFAULT_ACCURACY
) -> Callable[[ir.Model, ModelSpec], Firing]:
    """Every MatMul with a weight."""

    def fuse(model: ir.Model, spec: ModelSpec) -> Firing:
        def attempt(node: ir.Node, op: Builder) -> None:
            recipe = recipe_of(node.inputs[1])
            if recipe.parts[0] in TABLES:
                raise NoMatch("the head has the table's format")
            block = _format(formats, recipe)
            if not formats.apart(recipe.parts):
                weights = quantized(op, recipe, block, half=half, accuracy_level=level)
                op.replace(node.outputs[0], matmul(op, node.inputs[0], weights))
                return
            columns, rows = recipe.shape
            split = only_user(node.outputs[0], "Split")
            for part, output in zip(recipe.parts, split.outputs, strict=True):
                alone = replace(recipe, parts=(part,), shape=(columns, rows // 2))
                weights = quantized(op, alone, block, half=half, accuracy_level=level)
                op.replace(output, matmul(op, node.inputs[0], weights))

        return rewrite(model, "MatMul", attempt)

    return fuse


def table_pass(
    formats: Formats, kind: LookupKind, *, half: bool, level: AccuracyLevel = DEFAULT_ACCURACY
) -> Callable[[ir.Model, ModelSpec], Firing]:
    """The embedding lookup and the head: one matrix if tied, two if not."""

    def fuse(model: ir.Model, spec: ModelSpec) -> Firing:
        def look_up(node: ir.Node, op: Builder) -> None:
            recipe = recipe_of(node.inputs[0])
            weights = quantized(op, recipe, _format(formats, recipe), half=half)
            op.replace(node.outputs[0], lookup.rows(op, node.inputs[1], weights, kind, half=half))

        def head(node: ir.Node, op: Builder) -> None:
            if node.op_type == "Gemm":
                x = expect(node.inputs[0], "Reshape").inputs[0]
                out = next(iter(node.outputs[0].consumers())).outputs[0]
            else:
                x, out = node.inputs[0], node.outputs[0]
            recipe = recipe_of(node.inputs[1])
            weights = quantized(op, recipe, _format(formats, recipe), half=half, accuracy_level=level)
            op.replace(out, matmul(op, x, weights))

        firing = rewrite(model, "Gather", look_up)
        heads = rewrite(model, "Gemm" if spec.tie_word_embeddings else "MatMul", head)
        return Firing(firing.count + heads.count, firing.refusals + heads.refusals)

    return fuse


def _format(formats: Formats, recipe: Recipe) -> BlockFormat:
    block = formats.of(recipe.parts)
    if block is None:
        raise NoMatch(f"{recipe.parts[0]} has no block format")
    return block
