from __future__ import annotations

import numpy as np
import pytest

from graphs import SPEC, assert_same_numbers, edited, fire, numbers, operators, parse, with_spec
from lfm2export.passes import qk_norm
from lfm2export.spec import CONV, FULL_ATTENTION

#: What rms_norm, rotary and attention leave of one layer: query, key and value on their way; N 4, K 2, D 8.
TEXT = """
heads (float[B, S, 32] q, float[B, S, 16] k, float[B, S, 16] v, int64[B, S] places, float[R, 4] cosines,
       float[R, 4] sines, float[8] q_weight, float[8] k_weight)
    => (float[B, S, 32] q_out, float[B, S, 16] k_out, float[B, S, 16] v_out)
{
    q_shape = Constant <value_ints = [0, 0, 4, 8]> ()
    kv_shape = Constant <value_ints = [0, 0, 2, 8]> ()
    flat = Constant <value_ints = [0, 0, -1]> ()
    q_heads = Reshape (q, q_shape)
    q_normed = SimplifiedLayerNormalization <axis = -1, epsilon = 0.01, stash_type = 1> (q_heads, q_weight)
    q_first = Transpose <perm = [0, 2, 1, 3]> (q_normed)
    q_rotated = com.microsoft.RotaryEmbedding <interleaved = 0> (q_first, places, cosines, sines)
    q_last = Transpose <perm = [0, 2, 1, 3]> (q_rotated)
    q_out = Reshape (q_last, flat)
    k_heads = Reshape (k, kv_shape)
    k_normed = SimplifiedLayerNormalization <axis = -1, epsilon = 0.02, stash_type = 1> (k_heads, k_weight)
    k_first = Transpose <perm = [0, 2, 1, 3]> (k_normed)
    k_rotated = com.microsoft.RotaryEmbedding <interleaved = 0> (k_first, places, cosines, sines)
    k_last = Transpose <perm = [0, 2, 1, 3]> (k_rotated)
    k_out = Reshape (k_last, flat)
    v_heads = Reshape (v, kv_shape)
    v_first = Transpose <perm = [0, 2, 1, 3]> (v_heads)
    v_last = Transpose <perm = [0, 2, 1, 3]> (v_first)
    v_scaled = Reshape (v_last, flat)
    two = Constant <value_float = 2.0> ()
    v_out = Mul (v_scaled, two)
}
"""
WEIGHTS = ["q_weight", "k_weight"]


def test_heads_are_never_transposed() -> None:
    before, after = parse(TEXT, WEIGHTS), parse(TEXT, WEIGHTS)
    firing = fire(after, qk_norm.fuse)
    assert firing.count == 3
    # The three Reshapes that make heads are anchors too, and no pattern.
    assert len(firing.refusals) == 3 and all("expected Transpose before" in reason for reason in firing.refusals)
    assert operators(after) == {"Reshape": 4, "SimplifiedLayerNormalization": 2, "RotaryEmbedding": 2, "Mul": 1}
    norms = [node for node in after.graph if node.op_type == "SimplifiedLayerNormalization"]
    assert [node.attributes["epsilon"].as_float() for node in norms] == [pytest.approx(0.01), pytest.approx(0.02)]
    (scaled,) = (node for node in after.graph if node.op_type == "Mul")
    assert scaled.inputs[0] is not None and scaled.inputs[0].name == "v"
    angles = numbers("angles", 6, 4)
    feeds = {
        "q": numbers("q", 2, 3, 32),
        "k": numbers("k", 2, 3, 16),
        "v": numbers("v", 2, 3, 16),
        "places": np.arange(6).reshape(2, 3),
        "cosines": np.cos(angles),
        "sines": np.sin(angles),
    }
    assert_same_numbers(before, after, feeds, atol=2e-6)


@pytest.mark.parametrize(
    ("old", "new", "anchor", "reason"),
    [
        (
            "q_last = Transpose <perm = [0, 2, 1, 3]>",
            "q_last = Transpose <perm = [0, 1, 2, 3]>",
            "q_out",
            "a Transpose does not exchange heads and sequence",
        ),
        (
            "k_first = Transpose <perm = [0, 2, 1, 3]>",
            "k_first = Transpose <perm = [0, 2, 3, 1]>",
            "k_out",
            "a Transpose does not exchange heads and sequence",
        ),
        (
            "v_first = Transpose <perm = [0, 2, 1, 3]>",
            "v_first = Transpose <perm = [3, 2, 1, 0]>",
            "v_scaled",
            "a Transpose does not exchange heads and sequence",
        ),
        ("q_last = Transpose <perm = [0, 2, 1, 3]> (q_rotated)", "q_last = Neg (q_rotated)", "q_out", "found Neg"),
        (
            "q_first = Transpose <perm = [0, 2, 1, 3]> (q_normed)",
            "q_first = Neg (q_normed)",
            "q_out",
            "expected Transpose before q_first, found Neg",
        ),
        (
            "k_normed = SimplifiedLayerNormalization <axis = -1, epsilon = 0.02, stash_type = 1> (k_heads, k_weight)",
            "k_normed = Mul (k_heads, k_weight)",
            "k_out",
            "expected SimplifiedLayerNormalization before k_normed, found Mul",
        ),
        ("(k_heads, k_weight)", "(k_heads, measured)", "k_out", "measured is no weight"),
        ("q_heads = Reshape (q, q_shape)", "q_heads = Expand (q, q_shape)", "q_out", "expected Reshape before q_heads"),
        ("v_heads = Reshape (v, kv_shape)", "v_heads = Expand (v, kv_shape)", "v_scaled", "expected Reshape before v_"),
    ],
)
def test_near_misses_are_refused(old: str, new: str, anchor: str, reason: str) -> None:
    text = edited(TEXT, old, new).replace("    q_heads = ", "    measured = ReduceMean (q)\n    q_heads = ")
    model = parse(text, WEIGHTS)
    firing = qk_norm.fuse(model, SPEC)
    assert firing.count == 2
    assert any(text.startswith(f"Reshape {anchor}: ") and reason in text for text in firing.refusals), firing.refusals


def test_expected() -> None:
    assert qk_norm.expected(with_spec(layer_types=(CONV, FULL_ATTENTION, FULL_ATTENTION))) == 6
