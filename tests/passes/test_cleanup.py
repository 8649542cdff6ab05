from __future__ import annotations

import logging

import pytest

from graphs import assert_same_numbers, numbers, operators, parse, recipes
from lfm2export.passes import cleanup
from lfm2export.weights import Recipe

FOLDABLE = """
foldable (float[B, 8] x, float[8, 8] weight, float[8] bias) => (float[B, 8] y)
{
    two = Constant <value_int = 2> ()
    two_float = Cast <to = 1> (two)
    four = Mul (two_float, two_float)
    shape = Constant <value_ints = [8, 8]> ()
    transposed = Transpose <perm = [1, 0]> (weight)
    reshaped = Reshape (bias, minus)
    minus = Constant <value_ints = [-1]> ()
    same = Identity (x)
    dead = Neg (same)
    product = MatMul (same, transposed)
    scaled = Mul (product, four)
    summed = Add (scaled, bias)
    y = Identity (summed)
}
""".replace("    reshaped = Reshape (bias, minus)\n    minus", "    minus")


def test_constants_are_folded_and_weights_are_not() -> None:
    before, after = (parse(FOLDABLE, ["weight", "bias"]) for _ in range(2))
    cleanup.fold(after)
    assert operators(after) == {"Transpose": 1, "MatMul": 1, "Mul": 1, "Add": 1}
    assert recipes(after) == {"weight": Recipe(("weight",), (8, 8)), "bias": Recipe(("bias",), (8,))}
    constants = [value for value in after.graph.initializers.values() if value.const_value is not None]
    assert [value.const_value.numpy().tolist() for value in constants if value.const_value is not None] == [4.0]
    assert all(value.name == name for name, value in after.graph.initializers.items())
    assert after.graph.outputs[0].name == "y"
    assert_same_numbers(before, after, {"x": numbers("x", 3, 8)}, atol=1e-6)


DUPLICATES = """
duplicates (float[B, 8] x, float[8, 8] first, float[8, 8] second) => (float[B, 8] y, float[B, 8] z)
{
    one = Constant <value_floats = [0.5]> ()
    again = Constant <value_floats = [0.5]> ()
    other = Constant <value_floats = [0.75]> ()
    a = Mul (x, one)
    b = Mul (x, again)
    c = Mul (x, other)
    p = MatMul (a, first)
    q = MatMul (b, first)
    r = MatMul (b, second)
    left = Softmax <axis = 0> (c)
    right = Softmax <axis = 1> (c)
    pq = Add (p, q)
    y = Add (pq, r)
    lr = Sub (left, right)
    z = Add (lr, c)
}
"""


def test_equal_constants_and_equal_subexpressions_become_one() -> None:
    """Near misses: another constant, another weight of the same shape, the same operator along another axis."""
    before, after = (parse(DUPLICATES, ["first", "second"]) for _ in range(2))
    cleanup.merge(after)
    assert operators(after) == {"Mul": 2, "MatMul": 2, "Softmax": 2, "Add": 3, "Sub": 1}
    assert set(recipes(after)) == {"first", "second"} and len(after.graph.initializers) == 4
    assert_same_numbers(before, after, {"x": numbers("x", 3, 8)}, atol=1e-6)


def test_merging_twice_finds_nothing_more() -> None:
    model = parse(DUPLICATES, ["first", "second"])
    cleanup.merge(model)
    count, initializers = operators(model), list(model.graph.initializers)
    cleanup.merge(model)
    assert operators(model) == count and list(model.graph.initializers) == initializers


def test_nodes_are_left_in_topological_order() -> None:
    model = parse(DUPLICATES, ["first", "second"])
    nodes = list(model.graph)
    model.graph.remove(nodes[0])
    model.graph.append(nodes[0])
    cleanup.merge(model)
    seen = {*model.graph.inputs, *model.graph.initializers.values()}
    for node in model.graph:
        assert all(value in seen for value in node.inputs if value is not None)
        seen.update(node.outputs)


def test_a_weight_that_nobody_reads_is_dropped() -> None:
    model = parse(DUPLICATES.replace("r = MatMul (b, second)", "r = MatMul (b, first)"), ["first", "second"])
    cleanup.merge(model)
    assert set(recipes(model)) == {"first"} and operators(model)["MatMul"] == 1


def test_merging_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        cleanup.merge(parse(DUPLICATES, ["first", "second"]))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
