from __future__ import annotations

import pytest

from graphs import Checkpoint, edited, evaluate, fire, numbers, operators, parse, recipes, weight, with_spec
from lfm2export.passes import packing
from lfm2export.passes.projections import fuse as fold_transposes
from lfm2export.spec import CONV, FULL_ATTENTION
from lfm2export.weights import Recipe

LAYER = "model.layers.1."
QUERY, KEY, VALUE = (f"{LAYER}self_attn.{name}_proj.weight" for name in "qkv")
W1, W3 = (f"{LAYER}feed_forward.{name}.weight" for name in ("w1", "w3"))

#: Query, key and value read one value, the two halves of SwiGLU another; transposed as traced.
TEXT = f"""
layer (float[B, S, 32] x, float[B, S, 32] other, float[32, 32] "{QUERY}", float[16, 32] "{KEY}", 
       float[16, 32] "{VALUE}", float[48, 32] "{W1}", float[48, 32] "{W3}")
    => (float[B, S, 32] q, float[B, S, 16] k, float[B, S, 16] v, float[B, S, 48] gated)
{{
    q_transposed = Transpose <perm = [1, 0]> ("{QUERY}")
    q = MatMul (x, q_transposed)
    k_transposed = Transpose <perm = [1, 0]> ("{KEY}")
    k = MatMul (x, k_transposed)
    v_transposed = Transpose <perm = [1, 0]> ("{VALUE}")
    v = MatMul (x, v_transposed)
    w1_transposed = Transpose <perm = [1, 0]> ("{W1}")
    gate = MatMul (q, w1_transposed)
    w3_transposed = Transpose <perm = [1, 0]> ("{W3}")
    up = MatMul (q, w3_transposed)
    squashed = Sigmoid (gate)
    gated = Mul (squashed, up)
}}
"""
SHAPES = {QUERY: (32, 32), KEY: (16, 32), VALUE: (16, 32), W1: (48, 32), W3: (48, 32)}
SOURCE = Checkpoint({name: weight(name, shape) for name, shape in SHAPES.items()})
FEEDS = {"x": numbers("x", 2, 3, 32), "other": numbers("other", 2, 3, 32)}


def test_siblings_become_one_product_that_is_split() -> None:
    before, after = parse(TEXT, [*SHAPES]), parse(TEXT, [*SHAPES])
    fire(after, fold_transposes)
    firing = fire(after, packing.fuse)
    assert firing.count == 2 and firing.refusals == []
    assert operators(after) == {"MatMul": 2, "Split": 2, "Sigmoid": 1, "Mul": 1}
    assert recipes(after) == {
        f"{QUERY}+k_proj+v_proj.transposed": Recipe((QUERY, KEY, VALUE), (32, 64), transpose=True),
        f"{W1}+w3.transposed": Recipe((W1, W3), (32, 96), transpose=True),
    }
    assert [output.name for output in after.graph.outputs] == ["q", "k", "v", "gated"]
    expected, got = evaluate(before, FEEDS, SOURCE), evaluate(after, FEEDS, SOURCE)
    for name in expected:
        assert abs(expected[name]).max() > 0.5
        assert abs(expected[name] - got[name]).max() <= 2e-6, name


@pytest.mark.parametrize(
    ("old", "new", "anchor", "reason"),
    [
        ("up = MatMul (q,", "up = MatMul (other,", "gate", "it has no sibling, or is packed with an earlier one"),
        ("up = MatMul (q, w3_transposed)", "up = MatMul (q, made)", "gate", "made is no weight"),
        # The common value is on the right: no sibling.
        ("up = MatMul (q, w3_transposed)", "up = MatMul (made, q)", "gate", "it has no sibling"),
    ],
)
def test_near_misses_are_refused(old: str, new: str, anchor: str, reason: str) -> None:
    text = edited(TEXT, old, new).replace("    up = ", "    made = Neg (other)\n    up = ")
    model = parse(text, [*SHAPES])
    for node in model.graph:  # products keep their names here: the weights alone are folded
        if node.op_type == "MatMul" and (made := node.inputs[1].producer()) and made.op_type == "Transpose":  # type: ignore[union-attr]
            stored = made.inputs[0]
            assert stored is not None
            stored.meta["lfm2export.recipe"] = recipes(model)[str(stored.name)].transposed()
            node.replace_input_with(1, stored)
    firing = packing.fuse(model, with_spec())
    assert firing.count == 1  # query, key and value
    assert firing.refusals[0].startswith(f"MatMul {anchor}: ") and reason in firing.refusals[0]
    assert {W1, W3} <= set(recipes(model))


def test_expected() -> None:
    assert packing.expected(with_spec(layer_types=(CONV, FULL_ATTENTION, CONV))) == 1 + 3
