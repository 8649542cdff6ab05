from __future__ import annotations

import numpy as np
import pytest

from graphs import SPEC, assert_same_numbers, edited, fire, numbers, operators, parse, with_spec
from lfm2export.passes import last_token

OUT = "model.layers.1.self_attn.out_proj.weight"

#: The end of the last layer after skip_norm: y has 16 columns (N * D), the hidden state 32. The FFN is a Tanh here.
TEXT = f"""
finish (float[B, S, 16] y, float[B, S, 32] residual, int64[B, 1] count, float[16, 32] "{OUT}", float[32] ffn_norm,
        float[32] final_norm) => (float[B, 1, 32] logits)
{{
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    two = Constant <value_ints = [2]> ()
    by_column = Constant <value_ints = [1, 1, 32]> ()
    before = Sub (count, one)
    place = Clip (before, zero)
    place_3 = Unsqueeze (place, two)
    index = Expand (place_3, by_column)
    projected = MatMul (y, "{OUT}")
    added = Identity (projected)
    normed, , , sum = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 0.01> (added, residual, ffn_norm)
    mixed = Tanh (normed)
    final, , , unread = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 0.01> (sum, mixed, final_norm)
    last = GatherElements <axis = 1> (final, index)
    logits = Identity (last)
}}
"""
WEIGHTS = [OUT, "ffn_norm", "final_norm"]
PLAIN = TEXT.replace("    added = Identity (projected)\n", "").replace("(added, residual", "(projected, residual")
BIASED = PLAIN.replace("float[32] final_norm)", "float[32] final_norm, float[32] bias)").replace(
    "residual, ffn_norm)", "residual, ffn_norm, bias)"
)
VARIANTS = {
    "plain": PLAIN,
    "residual first": PLAIN.replace("(projected, residual,", "(residual, projected,"),
    "sum second": PLAIN.replace("(sum, mixed,", "(mixed, sum,"),
    "bias": BIASED,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_the_last_token_goes_through_the_end(variant: str) -> None:
    text, weights = VARIANTS[variant], [*WEIGHTS, *(["bias"] if "bias" in variant else [])]
    before, after = parse(text, weights), parse(text, weights)
    firing = fire(after, last_token.fuse)
    assert (firing.count, firing.refusals) == (1, [])
    assert operators(after)["GatherElements"] == 2
    (projection,) = (node for node in after.graph if node.op_type == "MatMul")
    assert projection.inputs[0] is not None
    producer = projection.inputs[0].producer()
    assert producer is not None and producer.op_type == "GatherElements" and producer.attributes["axis"].as_int() == 1
    feeds = {
        "y": numbers("y", 3, 4, 16),
        "residual": numbers("residual", 3, 4, 32),
        "count": np.array([[4], [1], [0]], np.int64),  # 0: a row that sits this step out
    }
    assert_same_numbers(before, after, feeds, atol=2e-6)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("(final, index)", "(normed, index)", "is made by SkipSimplifiedLayerNormalization"),
        ("(final, index)", "(mixed, index)", "expected SkipSimplifiedLayerNormalization before mixed, found Tanh"),
        ("index = Expand (place_3, by_column)", "index = Tile (place_3, by_column)", "expected Expand before index"),
        ("place_3 = Unsqueeze (place, two)", "place_3 = Neg (place)", "expected Unsqueeze before place_3, found Neg"),
        ("projected = MatMul (y,", "projected = Gemm (y,", "the last layer's output projection is not found"),
        (f'MatMul (y, "{OUT}")', "MatMul (y, measured)", "measured is no weight"),
        ("out_proj", "in_proj", "the last layer's output projection is not found"),
    ],
)
def test_near_misses_are_refused(old: str, new: str, reason: str) -> None:
    text = edited(PLAIN, old, new).replace("    projected = ", "    measured = Neg (y)\n    projected = ")
    model = parse(text, [*WEIGHTS, OUT.replace("out_proj", "in_proj")])
    count = operators(model)
    firing = last_token.fuse(model, SPEC)
    assert firing.count == 0 and len(firing.refusals) == 1 and reason in firing.refusals[0]
    assert operators(model) == count


def test_expected() -> None:
    assert last_token.expected(with_spec()) == 1
