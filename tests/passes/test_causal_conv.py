from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphs import (
    SPEC,
    Array,
    Checkpoint,
    checkpoint,
    edited,
    evaluate,
    fire,
    numbers,
    operators,
    parse,
    recipes,
    with_spec,
)
from lfm2export.passes import causal_conv
from lfm2export.spec import CONV, FULL_ATTENTION, ModelSpec
from lfm2export.weights import RECIPE, Recipe

#: One layer as `short_conv` leaves it, H 32, L 3; its number is put in for @.
LAYER = """
    held@ = Transpose <perm = [0, 2, 1]> (past@)
    window@ = Concat <axis = 1> (held@, Bx@)
    state@ = GatherElements <axis = 1> (window@, index)
    present@ = Transpose <perm = [0, 2, 1]> (state@)
    rows@ = Gather <axis = 1> (window@, taps)
    weighed@ = Mul (rows@, kernel@)
    y@ = ReduceSum <keepdims = 0> (weighed@, one)
"""


def text(layers: int) -> str:
    """The tokens of each row stand in front, `count` of them; every layer has its own B * x."""
    inputs = ", ".join(
        f"float[B, S, 32] Bx{n}, float[B, 32, 3] past{n}, float[3, 1, 32] kernel{n}" for n in range(layers)
    )
    outputs = ", ".join(f"float[B, S, 32] y{n}, float[B, 32, 3] present{n}" for n in range(layers))
    return f"""
convolve (int64[B, S] ids, int64[B, 1] count, {inputs}) => ({outputs})
{{
    one = Constant <value_ints = [1]> ()
    two = Constant <value_ints = [2]> ()
    zero = Constant <value_int = 0> ()
    step = Constant <value_int = 1> ()
    offsets = Constant <value_ints = [0, 1, 2]> ()
    by_tap = Constant <value_ints = [3, 1]> ()
    by_channel = Constant <value_ints = [1, 1, 32]> ()
    ends = Add (count, offsets)
    ends_3 = Unsqueeze (ends, two)
    index = Expand (ends_3, by_channel)
    shape = Shape <start = 1, end = 2> (ids)
    length = Squeeze (shape)
    places = Range (zero, length, step)
    first = Add (offsets, one)
    column = Reshape (first, by_tap)
    taps = Add (places, column)
{"".join(LAYER.replace("@", str(n)) for n in range(layers))}
}}
"""


def model(layers: int, source: str | None = None) -> ir.Model:
    found = parse(source or text(layers), [f"kernel{n}" for n in range(layers)])
    for n in range(layers):  # a kernel is [H, 1, L] in the checkpoint
        value = found.graph.initializers[f"kernel{n}"]
        value.meta[RECIPE] = Recipe((f"conv{n}",), (32, 1, 3)).transposed()
    return found


def spec_of(layers: int) -> ModelSpec:
    return with_spec(layer_types=(CONV,) * layers)


def feeds(layers: int, length: int) -> dict[str, Array]:
    """Rows with all, with one less, with one and with none of their tokens, or as many kinds as there are."""
    counts = np.array(sorted({length, max(length - 1, 0), min(length, 1), 0}, reverse=True), np.int64)
    rows = len(counts)
    found = {"ids": np.zeros((rows, length), np.int64), "count": counts[:, None]}
    for n in range(layers):
        found |= {f"Bx{n}": numbers(f"Bx{n}", rows, length, 32), f"past{n}": numbers(f"past{n}", rows, 32, 3)}
    return found


@pytest.mark.parametrize("layers", [1, 2, 7, 8, 14])
@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_one_operator_a_layer_and_the_states_of_all_together(layers: int, length: int) -> None:
    before, after = model(layers), model(layers)
    firing = fire(after, causal_conv.fuse, spec_of(layers))
    assert (firing.count, firing.refusals) == (layers, [])
    count = operators(after)
    assert count["CausalConvWithState"] == layers and count["GatherND"] == layers + 1 and count["Einsum"] == 2
    assert not set(count) & {"Gather", "GatherElements", "Transpose", "ReduceSum", "Expand"}
    for node in after.graph:  # as many buffers as every GPU binds to one kernel
        assert node.op_type not in ("Concat", "Split") or len(node.inputs) + len(node.outputs) <= 9
        assert node.op_type != "Concat" or len(node.inputs) <= 7
        assert node.op_type != "Split" or len(node.outputs) <= 7
        if node.op_type == "CausalConvWithState":
            assert node.domain == "com.microsoft" and node.attributes["channels_last"].as_int() == 1
    assert recipes(after)["conv0"] == Recipe(("conv0",), (32, 1, 3))
    source = sources_of(before)
    expected, got = evaluate(before, feeds(layers, length), source), evaluate(after, feeds(layers, length), source)
    assert list(expected) == list(got)
    for name, values in expected.items():
        if name.startswith("present"):  # copied, so not a bit is different
            np.testing.assert_array_equal(got[name], values, err_msg=name)
        else:
            np.testing.assert_allclose(got[name], values, atol=2e-6, rtol=0, err_msg=name)
        assert np.ptp(values) > 1


def sources_of(found: ir.Model) -> Checkpoint:
    return checkpoint({part: (32, 1, 3) for recipe in recipes(found).values() for part in recipe.parts})


def test_a_row_without_a_new_token_keeps_its_state() -> None:
    after = model(2)
    fire(after, causal_conv.fuse, spec_of(2))
    given = feeds(2, 1)
    assert given["count"].tolist() == [[1], [0]]
    got = evaluate(after, given, sources_of(model(2)))
    for n in range(2):
        past, present = given[f"past{n}"], got[f"present{n}"]
        np.testing.assert_array_equal(present[1], past[1])
        np.testing.assert_array_equal(present[0], np.concatenate([past[0, :, 1:], given[f"Bx{n}"][0].T], axis=1))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("weighed1 = Mul (rows1, kernel1)", "weighed1 = Add (rows1, kernel1)", "expected Mul before weighed1"),
        ("rows1 = Gather <axis = 1> (window1, taps)", "rows1 = Identity (window1)", "expected Gather before rows1"),
        ("Mul (rows1, kernel1)", "Mul (rows1, Bx1)", "Bx1 is no weight"),
        ("window1 = Concat <axis = 1> (held1, Bx1)", "window1 = Abs (Bx1)", "expected Concat before window1"),
        ("(held1, Bx1)", "(Bx1, held1)", "expected Transpose before Bx1"),
        ("held1 = Transpose <perm = [0, 2, 1]>", "held1 = Transpose <perm = [2, 1, 0]>", "perm of Transpose held1"),
        ("(window1, index)", "(held1, index)", "the window does not feed the next state"),
        ("present1 = Transpose <perm = [0, 2, 1]> (state1)", "present1 = Abs (state1)", "one Transpose"),
    ],
)
def test_near_misses_are_refused(old: str, new: str, reason: str) -> None:
    firing = causal_conv.fuse(model(2, edited(text(2), old, new)), spec_of(2))
    assert firing.count == 1 and len(firing.refusals) == 1
    assert firing.refusals[0].startswith("ReduceSum y1: ") and reason in firing.refusals[0]


def test_a_graph_without_short_convolutions_is_left_alone() -> None:
    graph = parse("plain (float[B, S, 32] x) => (float[B, S, 32] y) { y = Abs (x) }")
    assert fire(graph, causal_conv.fuse, with_spec(layer_types=(FULL_ATTENTION,))).count == 0
    assert operators(graph) == {"Abs": 1}


def test_expected() -> None:
    assert causal_conv.expected(with_spec(layer_types=(CONV, FULL_ATTENTION, CONV))) == 2
    assert causal_conv.expected(SPEC) == 1
