"""Packed projections: MatMuls that read the same value become one, and its result is split.

    x, Wq - MatMul - q                                x, [Wq | Wk | Wv] - MatMul - Split - q, k, v
    x, Wk - MatMul - k                ->
    x, Wv - MatMul - v

Once an attention layer (query, key, value) and once a layer (the two projections of the SwiGLU FFN). A weight in blocks
makes the operator quantize its input first: packed, that is done once, and there are fewer and larger pieces of work.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from lfm2export.passes.matching import Builder, Firing, NoMatch, recipe_of, rewrite
from lfm2export.spec import ModelSpec
from lfm2export.weights import stacked_name


def expected(spec: ModelSpec) -> int:
    return len(spec.attention_layers) + spec.num_hidden_layers


def fuse(model: ir.Model, spec: ModelSpec) -> Firing:
    def attempt(matmul: ir.Node, op: Builder) -> None:
        x = matmul.inputs[0]
        if x is None:
            raise NoMatch("the MatMul reads nothing")
        group = [node for node in x.consumers() if node.op_type == "MatMul" and node.inputs[0] is x]
        if len(group) < 2 or group[0] is not matmul:
            raise NoMatch("it has no sibling, or is packed with an earlier one")
        recipes = [recipe_of(node.inputs[1]) for node in group]
        rows = [recipe.shape[1] for recipe in recipes]
        packed = replace(
            recipes[0],
            parts=tuple(part for recipe in recipes for part in recipe.parts),
            shape=(recipes[0].shape[0], sum(rows)),
        )
        product = op("MatMul", x, op.weight(f"{stacked_name(packed.parts)}.transposed", packed))
        outputs = op.many("Split", [product, op.constant(rows)], len(rows), axis=-1)
        for node, output in zip(group, outputs, strict=True):
            op.replace(node.outputs[0], output)
            op.graph.remove(node, safe=True)

    return rewrite(model, "MatMul", attempt)
