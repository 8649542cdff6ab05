from __future__ import annotations

import numpy as np
import pytest

from graphs import SPEC, Array, assert_same_numbers, edited, fire, numbers, operators, parse, recipes, with_spec
from lfm2export.passes import qk_norm
from lfm2export.spec import CONV, FULL_ATTENTION
from lfm2export.weights import Recipe

#: What attention and packing leave of one layer: query, key and value on their way from one product; N 4, K 2, D 8.
TEXT = """
heads (float[B, S, 64] qkv, int64[B, S] places, float[R, 4] cosines, float[R, 4] sines, float[B, 2, P, 8] past_key,
       float[B, 2, P, 8] past_value, int32[B] lengths, int32[1] total, float[8] "layer.q_norm.weight",
       float[8] "layer.k_norm.weight")
    => (float[B, S, 32] out, float[B, 2, T, 8] present_key, float[B, 2, T, 8] present_value)
{
    parts = Constant <value_ints = [32, 16, 16]> ()
    q_shape = Constant <value_ints = [0, 0, 4, 8]> ()
    kv_shape = Constant <value_ints = [0, 0, 2, 8]> ()
    flat = Constant <value_ints = [0, 0, -1]> ()
    q, k, v = Split <axis = -1> (qkv, parts)
    q_heads = Reshape (q, q_shape)
    q_normed = SimplifiedLayerNormalization <axis = -1, epsilon = 0.01, stash_type = 1> (q_heads, "layer.q_norm.weight")
    q_first = Transpose <perm = [0, 2, 1, 3]> (q_normed)
    q_rotated = com.microsoft.RotaryEmbedding <interleaved = 0> (q_first, places, cosines, sines)
    q_last = Transpose <perm = [0, 2, 1, 3]> (q_rotated)
    q_out = Reshape (q_last, flat)
    k_heads = Reshape (k, kv_shape)
    k_normed = SimplifiedLayerNormalization <axis = -1, epsilon = 0.01, stash_type = 1> (k_heads, "layer.k_norm.weight")
    k_first = Transpose <perm = [0, 2, 1, 3]> (k_normed)
    k_rotated = com.microsoft.RotaryEmbedding <interleaved = 0> (k_first, places, cosines, sines)
    k_last = Transpose <perm = [0, 2, 1, 3]> (k_rotated)
    k_out = Reshape (k_last, flat)
    v_heads = Reshape (v, kv_shape)
    v_first = Transpose <perm = [0, 2, 1, 3]> (v_heads)
    v_last = Transpose <perm = [0, 2, 1, 3]> (v_first)
    v_out = Reshape (v_last, flat)
    out, present_key, present_value = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2, scale = 0.35>
        (q_out, k_out, v_out, past_key, past_value, lengths, total)
}
"""
WEIGHTS = ["layer.q_norm.weight", "layer.k_norm.weight"]


def feeds() -> dict[str, Array]:
    angles = numbers("angles", 3, 4)
    return {
        "qkv": numbers("qkv", 1, 3, 64),
        "places": np.arange(3)[None],
        "cosines": np.cos(angles),
        "sines": np.sin(angles),
        "past_key": numbers("past_key", 1, 2, 5, 8),
        "past_value": numbers("past_value", 1, 2, 5, 8),
        "lengths": np.array([7], np.int32),
        "total": np.array([8], np.int32),
    }


def test_query_and_key_are_normed_and_rotated_as_one() -> None:
    before, after = parse(TEXT, WEIGHTS), parse(TEXT, WEIGHTS)
    firing = fire(after, qk_norm.fuse)
    assert (firing.count, firing.refusals) == (1, [])
    assert operators(after) == {
        "Split": 2,
        "Reshape": 2,
        "SimplifiedLayerNormalization": 1,
        "Mul": 1,
        "RotaryEmbedding": 1,
        "GroupQueryAttention": 1,
    }
    (norm,) = (node for node in after.graph if node.op_type == "SimplifiedLayerNormalization")
    assert norm.attributes["epsilon"].as_float() == pytest.approx(0.01)
    assert recipes(after) == {"layer.q_norm.weight+k_norm.heads": Recipe((*WEIGHTS[:1] * 4, *WEIGHTS[1:] * 2), (6, 8))}
    assert_same_numbers(before, after, feeds(), atol=2e-6)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (
            "q_last = Transpose <perm = [0, 2, 1, 3]>",
            "q_last = Transpose <perm = [0, 1, 2, 3]>",
            "perm of Transpose q_last is [0, 1, 2, 3], expected [0, 2, 1, 3]",
        ),
        (
            "k_first = Transpose <perm = [0, 2, 1, 3]>",
            "k_first = Transpose <perm = [0, 2, 3, 1]>",
            "perm of Transpose k_first is [0, 2, 3, 1]",
        ),
        (
            "v_first = Transpose <perm = [0, 2, 1, 3]>",
            "v_first = Transpose <perm = [3, 2, 1, 0]>",
            "perm of Transpose v_first is [3, 2, 1, 0]",
        ),
        (
            "q_last = Transpose <perm = [0, 2, 1, 3]> (q_rotated)",
            "q_last = Neg (q_rotated)",
            "before q_last, found Neg",
        ),
        (
            "q_first = Transpose <perm = [0, 2, 1, 3]> (q_normed)",
            "q_first = Neg (q_normed)",
            "before q_first, found Neg",
        ),
        (
            "k_normed = SimplifiedLayerNormalization <axis = -1, epsilon = 0.01, stash_type = 1> "
            '(k_heads, "layer.k_norm.weight")',
            'k_normed = Mul (k_heads, "layer.k_norm.weight")',
            "expected SimplifiedLayerNormalization before k_normed, found Mul",
        ),
        (
            "epsilon = 0.01, stash_type = 1> (k_heads",
            "epsilon = 0.02, stash_type = 1> (k_heads",
            "the epsilons of query and key norm, 0.0",
        ),
        ("(k_first, places, cosines", "(k_first, places, sines", "query and key are not rotated by the same angles"),
        ('(k_heads, "layer.k_norm.weight")', "(k_heads, measured)", "measured is no weight"),
        ("q_heads = Reshape (q, q_shape)", "q_heads = Expand (q, q_shape)", "expected Reshape before q_heads"),
        ("v_heads = Reshape (v, kv_shape)", "v_heads = Expand (v, kv_shape)", "expected Reshape before v_heads"),
        ("v_heads = Reshape (v, ", "v_heads = Reshape (other, ", "expected Split before other, found Neg"),
        ("k_heads = Reshape (k, ", "k_heads = Reshape (v, ", "are not the parts of one product"),
        ("value_ints = [32, 16, 16]", "value_ints = [16, 32, 16]", "the product is not cut by heads"),
    ],
)
def test_near_misses_are_refused(old: str, new: str, reason: str) -> None:
    made = "    measured = ReduceMean (qkv)\n    other = Neg (qkv)\n    q_heads = "
    model = parse(edited(TEXT, old, new).replace("    q_heads = ", made), WEIGHTS)
    firing = qk_norm.fuse(model, SPEC)
    assert firing.count == 0
    (refusal,) = firing.refusals
    assert refusal.startswith("GroupQueryAttention out: ") and reason in refusal


def test_expected() -> None:
    assert qk_norm.expected(with_spec(layer_types=(CONV, FULL_ATTENTION, FULL_ATTENTION))) == 2
