from __future__ import annotations

import pytest

from graphs import assert_same_numbers, edited, fire, numbers, operators, parse, with_spec
from lfm2export.passes import rms_norm
from lfm2export.spec import CONV, FULL_ATTENTION

#: Two norms, one with its weight on the left, as the tracer has it.
TEXT = """
norms (float[batch, tokens, 8] x, float[8] first, float[8] second) => (float[batch, tokens, 8] y)
{
    two = Constant <value_float = 2.0> ()
    tiny = Constant <value_float = 0.01> ()
    last = Constant <value_ints = [-1]> ()
    square = Pow (x, two)
    mean = ReduceMean <keepdims = 1> (square, last)
    shifted = Add (mean, tiny)
    root = Sqrt (shifted)
    inverse = Reciprocal (root)
    normalized = Mul (x, inverse)
    middle = Mul (first, normalized)
    square_2 = Pow (middle, two)
    mean_2 = ReduceMean <keepdims = 1> (square_2, last)
    shifted_2 = Add (tiny, mean_2)
    root_2 = Sqrt (shifted_2)
    inverse_2 = Reciprocal (root_2)
    normalized_2 = Mul (inverse_2, middle)
    y = Mul (normalized_2, second)
}
"""
WEIGHTS = ["first", "second"]


def test_every_norm_becomes_one_operator() -> None:
    before, after = parse(TEXT, WEIGHTS), parse(TEXT, WEIGHTS)
    firing = fire(after, rms_norm.fuse)
    assert (firing.count, firing.refusals) == (2, [])
    assert operators(after) == {"SimplifiedLayerNormalization": 2}
    for node in after.graph:
        assert node.attributes["axis"].as_int() == -1
        assert node.attributes["stash_type"].as_int() == 1
        assert node.attributes["epsilon"].as_float() == pytest.approx(0.01, rel=1e-7)
    assert_same_numbers(before, after, {"x": numbers("x", 2, 3, 8)}, atol=2e-6)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("value_ints = [-1]", "value_ints = [1]", "the mean is not over the last axis"),
        ("value_float = 2.0", "value_float = 3.0", "the power is not 2"),
        ("Pow (x, two)", "Abs (x)", "expected Pow before square, found Abs"),
        ("ReduceMean", "ReduceSum", "is made by ReduceMean"),
        ("normalized = Mul (x, inverse)", "normalized = Mul (square, inverse)", "scaled is not what was measured"),
        ("middle = Mul (first, normalized)", "middle = Mul (normalized, mean)", "mean is no weight"),
        # epsilon outside of the root: sqrt(mean) + eps
        (
            "shifted = Add (mean, tiny)\n    root = Sqrt (shifted)",
            "shifted = Sqrt (mean)\n    root = Add (shifted, tiny)",
            "expected Sqrt before root, found Add",
        ),
        # 1 / sqrt is read again
        (
            "normalized = Mul (x, inverse)",
            "again = Neg (inverse)\n    normalized = Mul (x, inverse)",
            "inverse is read",
        ),
        ("tiny = Constant <value_float = 0.01> ()", "tiny = ReduceMax (x)", "tiny is no constant"),
    ],
)
def test_near_misses_are_refused(old: str, new: str, reason: str) -> None:
    text = edited(TEXT, old, new)
    model = parse(text, WEIGHTS)
    count = operators(model)
    firing = rms_norm.fuse(model, with_spec())
    assert reason in firing.refusals[0] and firing.refusals[0].startswith("Reciprocal inverse: ")
    assert operators(model)["Reciprocal"] == count["Reciprocal"] and firing.count == 2 - len(firing.refusals)


def test_expected() -> None:
    kinds = (CONV, FULL_ATTENTION, CONV, CONV)
    assert rms_norm.expected(with_spec(layer_types=kinds)) == 4 * 2 + 2 + 1
    assert rms_norm.expected(with_spec(layer_types=(CONV,))) == 3
