from __future__ import annotations

import pytest

from graphs import SPEC, assert_same_numbers, edited, fire, numbers, operators, parse, with_spec
from lfm2export.passes import skip_norm
from lfm2export.spec import CONV, FULL_ATTENTION

#: The first norm reads no sum; two later ones do, and each sum is read again. The last sum is a graph output.
TEXT = """
residual (float[B, S, 8] x, float[8] first, float[8] second, float[8] third)
    => (float[B, S, 8] y, float[B, S, 8] last_sum)
{
    normed = SimplifiedLayerNormalization <axis = -1, epsilon = 0.01, stash_type = 1> (x, first)
    mixed = Tanh (normed)
    sum = Add (mixed, x)
    normed_2 = SimplifiedLayerNormalization <axis = -1, epsilon = 0.02, stash_type = 1> (sum, second)
    mixed_2 = Tanh (normed_2)
    last_sum = Add (sum, mixed_2)
    y = SimplifiedLayerNormalization <axis = -1, epsilon = 0.03, stash_type = 1> (last_sum, third)
}
"""
WEIGHTS = ["first", "second", "third"]


def test_sum_and_norm_are_one_operator_with_both_results() -> None:
    before, after = parse(TEXT, WEIGHTS), parse(TEXT, WEIGHTS)
    firing = fire(after, skip_norm.fuse)
    assert firing.count == 2
    expected = "SimplifiedLayerNormalization normed: expected Add before x, found a graph input or initializer"
    assert firing.refusals == [expected]
    assert operators(after) == {
        "SimplifiedLayerNormalization": 1,
        "SkipSimplifiedLayerNormalization": 2,
        "Tanh": 2,
    }
    fused = [node for node in after.graph if node.op_type == "SkipSimplifiedLayerNormalization"]
    assert [node.domain for node in fused] == ["com.microsoft"] * 2
    assert [node.attributes["epsilon"].as_float() for node in fused] == [pytest.approx(0.02), pytest.approx(0.03)]
    assert [output.name for output in after.graph.outputs] == ["y", "last_sum"]
    assert after.graph.outputs[1].producer() is fused[1] and after.graph.outputs[1].index() == 3
    assert_same_numbers(before, after, {"x": numbers("x", 2, 3, 8)}, atol=2e-6)


@pytest.mark.parametrize("biased", ["Add (Tanh_2, bias)", "Add (bias, Tanh_2)"])
@pytest.mark.parametrize("left", [True, False])
def test_a_bias_is_added_with_it(biased: str, left: bool) -> None:
    text = edited(TEXT, "float[8] third", "float[8] third, float[8] bias")
    text = edited(text, "mixed_2 = Tanh (normed_2)", f"Tanh_2 = Tanh (normed_2)\n    mixed_2 = {biased}")
    text = edited(text, "Add (sum, mixed_2)", "Add (mixed_2, sum)" if left else "Add (sum, mixed_2)")
    before, after = parse(text, [*WEIGHTS, "bias"]), parse(text, [*WEIGHTS, "bias"])
    assert fire(after, skip_norm.fuse).count == 2
    assert "Add" not in operators(after)
    assert_same_numbers(before, after, {"x": numbers("x", 2, 3, 8)}, atol=2e-6)


def test_a_sum_with_a_bias_that_others_read_too_stays() -> None:
    text = edited(TEXT, "float[8] third", "float[8] third, float[8] bias")
    text = edited(text, "=> (float[B, S, 8] y,", "=> (float[B, S, 8] y, float[B, S, 8] seen,")
    text = edited(text, "mixed_2 = Tanh (normed_2)", "Tanh_2 = Tanh (normed_2)\n    mixed_2 = Add (Tanh_2, bias)")
    text = edited(text, "last_sum = ", "seen = Neg (mixed_2)\n    last_sum = ")
    before, after = parse(text, [*WEIGHTS, "bias"]), parse(text, [*WEIGHTS, "bias"])
    assert fire(after, skip_norm.fuse).count == 2
    assert operators(after)["Add"] == 1
    assert_same_numbers(before, after, {"x": numbers("x", 2, 3, 8)}, atol=2e-6)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("sum = Add (mixed, x)", "sum = Sub (mixed, x)", "expected Add before sum, found Sub"),
        ("(sum, second)", "(mixed, second)", "expected Add before mixed, found Tanh"),
    ],
)
def test_near_misses_are_refused(old: str, new: str, reason: str) -> None:
    before, after = (parse(edited(TEXT, old, new), WEIGHTS) for _ in range(2))
    firing = fire(after, skip_norm.fuse)
    assert firing.count == 1 and firing.refusals[1] == f"SimplifiedLayerNormalization normed_2: {reason}"
    assert_same_numbers(before, after, {"x": numbers("x", 2, 3, 8)}, atol=2e-6)


def test_expected() -> None:
    assert skip_norm.expected(with_spec(layer_types=(CONV, FULL_ATTENTION, CONV))) == 6
    assert skip_norm.expected(SPEC) == 4
