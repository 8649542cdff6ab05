from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphs import SPEC, Array, evaluate, fire, numbers, operators, parse, recipes, sources, with_spec
from lfm2export.passes import half
from lfm2export.spec import CONV, FULL_ATTENTION

#: What fusion leaves, in little: a lookup, a norm, two rotations that share their rows, a cache, the head; H 16, D 8.
TEXT = """
halved (int64[B, S] ids, int64[B, S] places, float[B, 2, P, 8] past, float[40, 16] table, float[16] norm,
        float[16, 16] mix) => (float[B, S, 40] logits, float[B, 2, T, 8] present)
{
    frequencies = Constant <value_floats = [1.0, 0.1, 0.01, 0.001]> ()
    column_shape = Constant <value_ints = [-1, 1]> ()
    heads_shape = Constant <value_ints = [0, 0, 2, 8]> ()
    rows_shape = Constant <value_ints = [-1, 16]> ()
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    vocabulary = Constant <value_ints = [40]> ()
    embedded = Gather <axis = 0> (table, ids)
    normed = SimplifiedLayerNormalization <axis = -1, epsilon = 0.01, stash_type = 1> (embedded, norm)
    column = Reshape (places, column_shape)
    column_float = Cast <to = 1> (column)
    angles = Mul (column_float, frequencies)
    cosines = Cos (angles)
    sines = Sin (angles)
    count = Size (places)
    steps = Range (zero, count, one)
    shape = Shape (places)
    rows_of_tokens = Reshape (steps, shape)
    mixed = MatMul (normed, mix)
    query = com.microsoft.RotaryEmbedding (normed, rows_of_tokens, cosines, sines)
    key = com.microsoft.RotaryEmbedding (mixed, rows_of_tokens, cosines, sines)
    key_heads = Reshape (key, heads_shape)
    key_transposed = Transpose <perm = [0, 2, 1, 3]> (key_heads)
    present = Concat <axis = 2> (past, key_transposed)
    rows = Reshape (query, rows_shape)
    product = Gemm <transB = 1> (rows, table)
    logits_shape = Concat <axis = 0> (shape, vocabulary)
    logits = Reshape (product, logits_shape)
}
"""
WEIGHTS = ["table", "norm", "mix"]
FEEDS = {
    "ids": np.array([[3, 17, 39], [0, 8, 21]]),
    "places": np.array([[0, 1, 2], [900, 901, 902]]),
    "past": numbers("past", 2, 2, 4, 8),
}


def dtypes(values: dict[str, Array]) -> dict[str, str]:
    return {name: value.dtype.name for name, value in values.items()}


def test_weights_caches_and_activations_are_halved_and_logits_are_not() -> None:
    before, after = parse(TEXT, WEIGHTS), parse(TEXT, WEIGHTS)
    firing = fire(after, half.fuse)
    assert (firing.count, firing.refusals) == (1 + 2 + 1, [])  # a cache, the rotary rows, the logits
    assert {recipe.dtype for recipe in recipes(after).values()} == {"FLOAT16"}
    assert [value.dtype for value in after.graph.inputs] == [ir.DataType.INT64, ir.DataType.INT64, ir.DataType.FLOAT16]
    expected = evaluate(before, FEEDS, sources(before))
    got = evaluate(after, FEEDS | {"past": FEEDS["past"].astype(np.float16)}, sources(before))
    assert dtypes(got) == {"logits": "float32", "present": "float16"}
    # A few roundings to float16 on the way to either, of values up to 3.4: measured 2.4e-3 and 1.6e-3.
    np.testing.assert_allclose(got["logits"], expected["logits"], atol=5e-3, rtol=0)
    np.testing.assert_allclose(got["present"], expected["present"], atol=4e-3, rtol=0)


def test_what_needs_float32_keeps_it() -> None:
    """Angles of 902 radians would be off by half a radian in float16; norms state that they compute in float32."""
    after = parse(TEXT, WEIGHTS)
    fire(after, half.fuse)
    casts = [node for node in after.graph if node.op_type == "Cast"]
    assert sorted(node.attributes["to"].as_int() for node in casts) == [1, 1, 10, 10]
    halved = [node for node in casts if node.attributes["to"].as_int() == ir.DataType.FLOAT16]
    assert sorted(node.inputs[0].name for node in halved if node.inputs[0] is not None) == ["cosines", "sines"]
    rotations = [node for node in after.graph if node.op_type == "RotaryEmbedding"]
    assert rotations[0].inputs[2] is rotations[1].inputs[2] and rotations[0].inputs[3] is rotations[1].inputs[3]
    (frequencies,) = (value for name, value in after.graph.initializers.items() if name == "frequencies")
    assert frequencies.dtype == ir.DataType.FLOAT
    norm = next(node for node in after.graph if node.op_type == "SimplifiedLayerNormalization")
    assert norm.attributes["stash_type"].as_int() == 1
    logits = after.graph.outputs[0].producer()
    assert logits is not None and logits.op_type == "Cast" and after.graph.outputs[0].name == "logits"


def test_nothing_but_rotary_rows_and_caches_is_cast() -> None:
    """Near miss: sines that no rotation reads, and an integer past."""
    text = TEXT.replace("com.microsoft.RotaryEmbedding (normed, rows_of_tokens, cosines, sines)", "Identity (normed)")
    text = text.replace("com.microsoft.RotaryEmbedding (mixed, rows_of_tokens, cosines, sines)", "Identity (mixed)")
    model = parse(text.replace("float[B, 2, P, 8] past", "int64[B, 2, P, 8] past"), WEIGHTS)
    count = operators(model)
    firing = half.fuse(model, SPEC)
    assert firing.count == 1 < half.expected(SPEC)
    assert operators(model)["Cast"] == count["Cast"] + 1  # the logits


def test_expected() -> None:
    assert half.expected(with_spec(layer_types=(CONV, FULL_ATTENTION, CONV))) == 2 + 2 + 2 + 1
    assert half.expected(with_spec(layer_types=(CONV,))) == 1 + 1
