"""Weight transposes folded: a weight is written the way its operator reads it.

    x, Transpose(W [out, in]) - MatMul - y               ->   x, W' [in, out] - MatMul - y
    x [B, S, H], Transpose(table [V, H]) - MatMul - y    ->   x - Reshape [B*S, H] - Gemm(table, transB) - Reshape - y

Every projection fires, and the head. A tied table is stored once, [V, H], as the lookup reads it; MatMul would make
the runtime keep a transposed copy.
"""

from __future__ import annotations

import onnx_ir as ir

from lfm2export.passes.matching import Builder, Firing, expect, recipe_of, rewrite
from lfm2export.spec import ModelSpec

PER_CONV, PER_ATTENTION, PER_FFN = 2, 4, 3


def expected(spec: ModelSpec) -> int:
    ffn = PER_FFN * spec.num_hidden_layers
    return PER_CONV * len(spec.conv_layers) + PER_ATTENTION * len(spec.attention_layers) + ffn + 1


def fuse(model: ir.Model, spec: ModelSpec) -> Firing:
    def attempt(matmul: ir.Node, op: Builder) -> None:
        weight = expect(matmul.inputs[1], "Transpose").inputs[0]
        recipe = recipe_of(weight)
        assert weight is not None
        shared = any(node.op_type == "Gather" for node in weight.consumers())
        if not shared:
            folded = op.weight(f"{weight.name}.transposed", recipe.transposed())
            op.replace(matmul.outputs[0], op("MatMul", matmul.inputs[0], folded))
            return
        rows = op("Reshape", matmul.inputs[0], op.constant([-1, spec.hidden_size]))
        product = op("Gemm", rows, weight, transB=1)
        leading = matmul.inputs[0].shape if matmul.inputs[0] is not None else None
        if leading is not None and leading[1] == 1:
            shape = op.constant([-1, 1, spec.vocab_size])
        else:
            shape = op("Concat", op("Shape", matmul.inputs[0], end=2), op.constant([spec.vocab_size]), axis=0)
        op.replace(matmul.outputs[0], op("Reshape", product, shape))

    return rewrite(model, "MatMul", attempt)
