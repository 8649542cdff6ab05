"""QK norm: the heads of query and key are normalized and rotated together, and never transposed.

    qkv - Split -+- q - Reshape [B, S, N, D] - Norm(q weight) - Transpose - Rotary - Transpose - Reshape -+
                 +- k - Reshape [B, S, K, D] - Norm(k weight) - Transpose - Rotary - Transpose - Reshape -+- attention
                 +- v - Reshape [B, S, K, D] - Transpose - Transpose - Reshape ---------------------------+
                                      ->
    qkv - Split -+- qk - Reshape [B, S, N + K, D] - Norm(1) - Mul(weights [N + K, D]) - Reshape - Rotary - Split -+- q
                 +- v                                                                                             +- k

Once an attention layer. A norm is its weight times the normalized heads, and every head is normalized and rotated by
itself: the numbers are the same, and one operator does the work of two. `weights` are those of query and key, once for
every head of theirs.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lfm2export.passes.attention import HEADS_LAST
from lfm2export.passes.matching import (
    Builder,
    Firing,
    constant_array,
    expect,
    recipe_of,
    require,
    require_ints,
    rewrite,
)
from lfm2export.spec import ModelSpec
from lfm2export.weights import Recipe, stacked_name


def expected(spec: ModelSpec) -> int:
    return len(spec.attention_layers)


def fuse(model: ir.Model, spec: ModelSpec) -> Firing:
    heads, kv_heads, size = spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim
    rows = [heads * size, kv_heads * size]

    def attempt(attention: ir.Node, op: Builder) -> None:
        query, key = (_by_head(value) for value in attention.inputs[:2])
        rotary, key_rotary = (expect(value, "RotaryEmbedding") for value in (query, key))
        require(rotary.inputs[1:] == key_rotary.inputs[1:], "query and key are not rotated by the same angles")
        norm, key_norm = (
            expect(_heads_first(node.inputs[0]), "SimplifiedLayerNormalization") for node in (rotary, key_rotary)
        )
        epsilon, key_epsilon = (node.attributes["epsilon"].as_float() for node in (norm, key_norm))
        require(epsilon == key_epsilon, f"the epsilons of query and key norm, {epsilon} and {key_epsilon}, differ")
        value = expect(_heads_first(_by_head(attention.inputs[2])), "Reshape").inputs[0]
        split = expect(value, "Split")
        projected = tuple(expect(node.inputs[0], "Reshape").inputs[0] for node in (norm, key_norm))
        require((*projected, value) == tuple(split.outputs), "query, key and value are not the parts of one product")
        require(constant_array(split.inputs[1]).tolist() == [*rows, rows[1]], "the product is not cut by heads")

        both, new_value = op.many("Split", [split.inputs[0], op.constant([sum(rows), rows[1]])], 2, axis=-1)
        by_head = op("Reshape", both, op.constant([0, 0, -1, size]))
        ones = op.constant(np.ones(size, dtype=np.float32))
        normalized = op(norm.op_type, by_head, ones, axis=-1, epsilon=epsilon, stash_type=1)
        scaled = op("Mul", normalized, _weights(op, norm, key_norm, heads, kv_heads))
        flat = op("Reshape", scaled, op.constant([0, 0, -1]))
        rotated = op("RotaryEmbedding", flat, *rotary.inputs[1:], domain=rotary.domain, interleaved=0)
        new_query, new_key = op.many("Split", [rotated, op.constant(rows)], 2, axis=-1)
        for number, new in enumerate((new_query, new_key, new_value)):
            attention.replace_input_with(number, new)

    return rewrite(model, "GroupQueryAttention", attempt)


def _by_head(flat: ir.Value | None) -> ir.Value | None:
    """[B, heads, S, D] of the [B, S, heads * D] that attention reads."""
    return _heads_first(expect(flat, "Reshape").inputs[0])


def _heads_first(transposed: ir.Value | None) -> ir.Value | None:
    transpose = expect(transposed, "Transpose")
    require_ints(transpose, perm=HEADS_LAST)
    return transpose.inputs[0]


def _weights(op: Builder, norm: ir.Node, key_norm: ir.Node, heads: int, kv_heads: int) -> ir.Value:
    """[N + K, D]: the weight of the norm that each head has."""
    recipes = [recipe_of(node.inputs[1]) for node in (norm, key_norm)]
    names = [recipe.parts[0] for recipe in recipes]
    parts = (*(names[:1] * heads), *(names[1:] * kv_heads))
    return op.weight(f"{stacked_name(names)}.heads", Recipe(parts, (heads + kv_heads, *recipes[0].shape)))
