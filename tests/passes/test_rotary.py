from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphs import SPEC, Checkpoint, assert_same_numbers, edited, evaluate, fire, numbers, operators, parse, with_spec
from lfm2export.passes import rotary
from lfm2export.spec import CONV, FULL_ATTENTION

#: Query and key, as transformers rotates them; D 8. Frequencies fall from 1 as they do in the model.
TEXT = """
rotate (int64[B, S] positions, float[B, 4, S, 8] q, float[B, 2, S, 8] k)
    => (float[B, 4, S, 8] q_rotated, float[B, 2, S, 8] k_rotated)
{
    frequencies = Constant <value_floats = [1.0, 0.1, 0.01, 0.001]> ()
    zero = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    two = Constant <value_ints = [2]> ()
    three = Constant <value_ints = [3]> ()
    four = Constant <value_ints = [4]> ()
    end = Constant <value_ints = [9223372036854775807]> ()
    column = Unsqueeze (positions, two)
    column_float = Cast <to = 1> (column)
    angles = Mul (column_float, frequencies)
    doubled = Concat <axis = -1> (angles, angles)
    cosine = Cos (doubled)
    sine = Sin (doubled)
    cosines = Unsqueeze (cosine, one)
    sines = Unsqueeze (sine, one)
    q_straight = Mul (q, cosines)
    q_low = Slice (q, zero, four, three, one)
    q_high = Slice (q, four, end, three, one)
    q_negated = Neg (q_high)
    q_exchanged = Concat <axis = -1> (q_negated, q_low)
    q_crossed = Mul (q_exchanged, sines)
    q_rotated = Add (q_straight, q_crossed)
    k_straight = Mul (cosines, k)
    k_low = Slice (k, zero, four, three, one)
    k_high = Slice (k, four, end, three, one)
    k_negated = Neg (k_high)
    k_exchanged = Concat <axis = -1> (k_negated, k_low)
    k_crossed = Mul (sines, k_exchanged)
    k_rotated = Add (k_crossed, k_straight)
}
"""


def feeds(positions: list[list[int]]) -> dict[str, np.ndarray]:
    rows, length = np.shape(positions)
    tokens = {"q": numbers("q", rows, 4, length, 8), "k": numbers("k", rows, 2, length, 8)}
    return {"positions": np.array(positions, np.int64), **tokens}


def test_query_and_key_share_rows_that_are_computed_once() -> None:
    before, after = parse(TEXT), parse(TEXT)
    firing = fire(after, rotary.fuse)
    assert (firing.count, firing.refusals) == (2, [])
    count = operators(after)
    assert count["RotaryEmbedding"] == 2
    assert count["Sin"] == count["Cos"] == count["Range"] == count["Size"] == 1
    assert not set(count) & {"Neg", "Slice", "Concat"}
    for node in after.graph:
        if node.op_type == "RotaryEmbedding":
            assert node.domain == "com.microsoft" and node.attributes["interleaved"].as_int() == 0
    # Positions differ from row to row, and do not start at 0.
    assert_same_numbers(before, after, feeds([[0, 1, 2], [7, 8, 9], [0, 0, 1]]), atol=2e-6)
    assert_same_numbers(before, after, feeds([[11]]), atol=2e-6)


@pytest.mark.parametrize(
    ("farthest", "tolerance"),
    [(4_096, 2e-7), (131_071, 2.5e-6)],  # measured over all positions: 1.8e-7 and 2.1e-6
)
def test_rows_are_exact_far_out(farthest: int, tolerance: float) -> None:
    """Against sines in float64 of the angles as transformers rounds them, over the positions of a long context."""
    model = parse(TEXT)
    fire(model, rotary.fuse)
    embedding = next(node for node in model.graph if node.op_type == "RotaryEmbedding")
    for value, name in zip(embedding.inputs[2:], ("cosines", "sines"), strict=True):
        assert value is not None
        value.name, value.type, value.shape = name, ir.TensorType(ir.DataType.FLOAT), ir.Shape([None, 4])
        model.graph.outputs.append(value)
    positions = np.unique(np.linspace(0, farthest, 5000).astype(np.int64))
    found = evaluate(model, feeds([[int(position) for position in positions]]), Checkpoint({}))
    frequencies = np.array([1.0, 0.1, 0.01, 0.001], np.float32)
    angles = (positions.astype(np.float32)[:, None] * frequencies).astype(np.float64)
    np.testing.assert_allclose(found["cosines"], np.cos(angles), atol=tolerance, rtol=0)
    np.testing.assert_allclose(found["sines"], np.sin(angles), atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("(q_negated, q_low)", "(q_negated, q_high)", "the halves are not cut at 4"),
        ("(q_negated, q_low)", "(q_low, q_negated)", "expected Slice before q_negated, found Neg"),
        ("q_low = Slice (q,", "q_low = Slice (q_straight,", "the halves are not exchanged"),
        ("q_high = Slice (q, four", "q_high = Slice (q, two", "the halves are not cut at 4"),
        ("q_low = Slice (q, zero, four", "q_low = Slice (q, zero, three", "the halves are not cut at 4"),
        ("q_negated = Neg (q_high)", "q_negated = Neg (q)", "expected Slice before q, found a graph input"),
        ("q_straight = Mul (q, cosines)", "q_straight = Mul (k, cosines)", "do not rotate the same value"),
        ("doubled = Concat <axis = -1> (angles, angles)", "doubled = Concat <axis = -1> (angles, more)", "not doubled"),
        ("sine = Sin (doubled)", "sine = Sin (more)", "expected Concat before more, found Mul"),
        ("sine = Sin (doubled)", "sine = Sin (other)", "cosine and sine are of different angles"),
        ("sine = Sin (doubled)", "sine = Cos (doubled)", "expected Sin before sine, found Cos"),
        ("column_float = Cast <to = 1> (column)", "column_float = Abs (column)", "expected Cast before column_float"),
    ],
)
def test_near_misses_are_refused(old: str, new: str, reason: str) -> None:
    """Refusals leave the graph as it was: its types need not fit for that."""
    other = "\n    more = Mul (angles, angles)\n    other = Concat <axis = -1> (more, more)\n    doubled = "
    text = edited(edited(TEXT, "\n    doubled = ", other), old, new)
    model = parse(text)
    firing = rotary.fuse(model, SPEC)
    assert firing.refusals and reason in firing.refusals[0], firing.refusals
    assert firing.refusals[0].startswith("Neg q_negated: ")
    assert operators(model)["Neg"] == 2 and operators(model)["RotaryEmbedding"] == firing.count


def test_head_dim_of_the_spec_decides_where_the_halves_are() -> None:
    firing = rotary.fuse(parse(TEXT), with_spec(head_dim=16))
    assert firing.count == 0 and "the halves are not cut at 8" in firing.refusals[0]


def test_expected() -> None:
    assert rotary.expected(with_spec(layer_types=(CONV, FULL_ATTENTION, FULL_ATTENTION))) == 4
    assert rotary.expected(with_spec(layer_types=(CONV,))) == 0
