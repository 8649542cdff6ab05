from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphs import SPEC, Checkpoint, assert_same_numbers, edited, evaluate, fire, numbers, operators, parse, with_spec
from lfm2export.passes import rotary_table
from lfm2export.spec import CONV, FULL_ATTENTION

#: Two layers that share their rows, as `rotary` and `qk_norm` leave them; D 8, up to position 255.
TEXT = """
rotate (int64[B, S] positions, float[B, S, 48] x, float[B, S, 48] z) => (float[B, S, 48] y, float[B, S, 48] w)
{
    frequencies = Constant <value_floats = [1.0, 0.1, 0.01, 0.001]> ()
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    column_shape = Constant <value_ints = [-1, 1]> ()
    in_turns = Constant <value_float = 0.15915494> ()
    half = Constant <value_float = 0.5> ()
    head = Constant <value_float = 6.28125> ()
    tail = Constant <value_float = 0.0019353072> ()
    flat = Reshape (positions, column_shape)
    column = Cast <to = 1> (flat)
    angle = Mul (column, frequencies)
    turned = Mul (angle, in_turns)
    shifted = Add (turned, half)
    turns = Floor (shifted)
    whole = Mul (turns, head)
    coarse = Sub (angle, whole)
    rest = Mul (turns, tail)
    reduced = Sub (coarse, rest)
    sines = Sin (reduced)
    cosines = Cos (reduced)
    count = Size (positions)
    steps = Range (zero, count, one)
    shape = Shape (positions)
    places = Reshape (steps, shape)
    y = com.microsoft.RotaryEmbedding <interleaved = 0> (x, places, cosines, sines)
    w = com.microsoft.RotaryEmbedding <interleaved = 0> (z, places, cosines, sines)
}
"""
TWO = with_spec(layer_types=(FULL_ATTENTION, FULL_ATTENTION))


def test_all_positions_are_rows_of_constants() -> None:
    before, after = parse(TEXT), parse(TEXT)
    firing = fire(after, rotary_table.fuse, TWO)
    assert (firing.count, firing.refusals) == (2, [])
    assert operators(after) == {"RotaryEmbedding": 2, "Sin": 1, "Cos": 1, "Mul": 1, "Cast": 1, "Reshape": 1, "Range": 1}
    rotations = [node for node in after.graph if node.op_type == "RotaryEmbedding"]
    assert all(node.inputs[1] is after.graph.inputs[0] and node.domain == "com.microsoft" for node in rotations)
    for positions in ([[0, 1, 2], [7, 8, 9], [0, 0, 255]], [[11]]):
        rows, length = np.shape(positions)
        feeds = {name: numbers(name, rows, length, 48) for name in ("x", "z")}
        feeds["positions"] = np.array(positions, np.int64)
        assert_same_numbers(before, after, feeds, atol=2e-6)


def test_a_context_beyond_the_longest_table_has_none() -> None:
    long = with_spec(
        layer_types=(FULL_ATTENTION, FULL_ATTENTION), max_position_embeddings=rotary_table.MOST_POSITIONS + 1
    )
    model = parse(TEXT)
    assert fire(model, rotary_table.fuse, long).count == rotary_table.expected(long) == 0
    assert operators(model) == operators(parse(TEXT))


def test_rows_are_exact_far_out() -> None:
    """Against sines in float64 of the angles as transformers rounds them, over 131,072 positions; measured 1.1e-7."""
    model = parse(TEXT)
    fire(model, rotary_table.fuse, with_spec(max_position_embeddings=131_072))
    rotation = next(node for node in model.graph if node.op_type == "RotaryEmbedding")
    for value, name in zip(rotation.inputs[2:], ("cos_table", "sin_table"), strict=True):
        assert value is not None
        value.name, value.type, value.shape = name, ir.TensorType(ir.DataType.FLOAT), ir.Shape([None, 4])
        model.graph.outputs.append(value)
    feeds = {"positions": np.array([[131_071]]), "x": numbers("x", 1, 1, 48), "z": numbers("z", 1, 1, 48)}
    found = evaluate(model, feeds, Checkpoint({}))
    frequencies = np.array([1.0, 0.1, 0.01, 0.001], np.float32)
    angles = (np.arange(131_072, dtype=np.float32)[:, None] * frequencies).astype(np.float64)
    np.testing.assert_allclose(found["cos_table"], np.cos(angles), atol=1.5e-7, rtol=0)
    np.testing.assert_allclose(found["sin_table"], np.sin(angles), atol=1.5e-7, rtol=0)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("sines = Sin (reduced)", "sines = Sin (coarse)", "cosine and sine are of different angles"),
        ("cosines = Cos (reduced)", "cosines = Sin (reduced)", "expected Cos before cosines, found Sin"),
        ("reduced = Sub (coarse, rest)", "reduced = Sub (angle, rest)", "expected Sub before angle, found Mul"),
        ("flat = Reshape (positions, column_shape)", "flat = Reshape (steps, column_shape)", "not those of the positi"),
        ("places = Reshape (steps, shape)", "places = Abs (positions)", "expected Reshape before places, found Abs"),
        ("Range (zero, count, one)", "Range (zero, one, one)", "expected Size before one"),
    ],
)
def test_near_misses_are_refused(old: str, new: str, reason: str) -> None:
    firing = rotary_table.fuse(parse(edited(TEXT, old, new)), SPEC)
    assert firing.count == 0 and len(firing.refusals) == 2
    assert firing.refusals[0].startswith("RotaryEmbedding ") and reason in firing.refusals[0]


def test_expected() -> None:
    assert rotary_table.expected(with_spec(layer_types=(CONV, FULL_ATTENTION, FULL_ATTENTION))) == 2
    assert rotary_table.expected(with_spec(layer_types=(CONV,))) == 0
