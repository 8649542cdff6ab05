"""QK norm: query and key are normalized per head and rotated without ever being transposed.

    p [B, S, N*D] - Reshape [B, S, N, D] - Norm - Transpose [B, N, S, D] - Rotary - Transpose - Reshape [B, S, N*D] -
    attention
                                      ->
    p [B, S, N*D] - Reshape [B, S, N, D] - Norm - Reshape [B, S, N*D] - Rotary - attention

Twice an attention layer; and the value of each, whose two Transposes cancel, goes to attention as it is:

    v [B, S, K*D] - Reshape - Transpose - Transpose - Reshape - attention     ->     v - attention
"""

from __future__ import annotations

import onnx_ir as ir

from lfm2export.passes.attention import HEADS_LAST
from lfm2export.passes.matching import Builder, Firing, NoMatch, expect, recipe_of, rewrite
from lfm2export.spec import ModelSpec


def expected(spec: ModelSpec) -> int:
    return 3 * len(spec.attention_layers)


def fuse(model: ir.Model, spec: ModelSpec) -> Firing:
    def attempt(reshape: ir.Node, op: Builder) -> None:
        outer = expect(reshape.inputs[0], "Transpose")
        below = outer.inputs[0].producer() if outer.inputs[0] is not None else None
        rotary = below if below is not None and below.op_type == "RotaryEmbedding" else None
        inner = expect(rotary.inputs[0] if rotary is not None else outer.inputs[0], "Transpose")
        for transpose in (outer, inner):
            if list(transpose.attributes["perm"].as_ints()) != HEADS_LAST:
                raise NoMatch("a Transpose does not exchange heads and sequence")
        heads = inner.inputs[0]
        if rotary is None:
            op.replace(reshape.outputs[0], _value(expect(heads, "Reshape").inputs[0]))
            return
        norm = expect(heads, "SimplifiedLayerNormalization")
        recipe_of(norm.inputs[1])
        projected = expect(norm.inputs[0], "Reshape").inputs[0]
        by_head = op("Reshape", projected, op.constant([0, 0, -1, spec.head_dim]))
        normalized = op(norm.op_type, by_head, norm.inputs[1], **{k: a.value for k, a in norm.attributes.items()})
        flat = op("Reshape", normalized, op.constant([0, 0, -1]))
        y = op("RotaryEmbedding", flat, *rotary.inputs[1:], domain=rotary.domain, interleaved=0)
        op.replace(reshape.outputs[0], y)

    return rewrite(model, "Reshape", attempt)


def _value(value: ir.Value | None) -> ir.Value:
    if value is None:
        raise NoMatch("the Reshape reads nothing")
    return value
