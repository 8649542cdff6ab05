"""8 bits at work: the numbers are those of numpy's model of it, token by token, and no token depends on another."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphs import (
    SPEC,
    Array,
    Checkpoint,
    edited,
    evaluate,
    fire,
    numbers,
    operators,
    parse,
    recipes,
    weight,
    with_spec,
)
from lfm2export.passes import cleanup
from lfm2export.passes.int8_matmul import projections_pass, table_pass
from lfm2export.quant import dequantize, quantize
from lfm2export.verify.int8 import rounded_tokens
from lfm2export.weights import RECIPE, ChannelFormat, Recipe

Q, K, HEAD, TABLE = (
    "model.layers.1.self_attn.q_proj.weight",
    "model.layers.1.self_attn.k_proj.weight",
    "lm_head.weight",
    "model.embed_tokens.weight",
)
FORM = ChannelFormat()


def dequantized(values: Array) -> Array:
    block = FORM.block(values.shape[1])
    return dequantize(quantize(values, block), block, values.shape[1])


def expected_product(x: Array, values: Array) -> Array:
    """x [B, S, K] rounded token by token, by the stored rows of `values` [N, K]."""
    scales, codes = rounded_tokens(x.reshape(-1, x.shape[-1]))
    product = (codes * scales[:, None].astype(np.float64)) @ dequantized(values).T.astype(np.float64)
    return product.reshape(*x.shape[:-1], -1)


def projected(columns: int = 33) -> tuple[ir.Model, Checkpoint]:
    text = f"""
project (int64[B, S] input_ids, float[B, S, {columns}] x, float[{columns}, 24] "{Q}", float[{columns}, 16] "{K}")
    => (float[B, S, 24] first, float[B, S, 16] second)
{{
    first = MatMul (x, "{Q}")
    second = MatMul (x, "{K}")
}}
"""
    model = parse(text, [Q, K])
    for name, rows in ((Q, 24), (K, 16)):
        model.graph.initializers[name].meta[RECIPE] = Recipe((name,), (rows, columns)).transposed()
    return model, Checkpoint({Q: weight(Q, (24, columns)), K: weight(K, (16, columns))})


def feeds(*shape: int) -> dict[str, Array]:
    x = numbers("x", *shape)
    x *= np.exp(numbers("sizes", *shape[:2])[..., None] * 2)  # tokens of very different magnitude
    return {"input_ids": np.zeros(shape[:2], np.int64), "x": x}


def test_projections_share_the_rounding_of_what_they_read() -> None:
    model, source = projected()
    firing = fire(model, projections_pass(FORM, "all"))
    assert (firing.count, firing.refusals) == (2, [])
    cleanup.merge(model)
    count = operators(model)
    assert count["MatMulInteger"] == 2 and "MatMul" not in count
    assert count["QuantizeLinear"] == count["ReduceMax"] == count["Abs"] == count["ConstantOfShape"] == 1
    stored = recipes(model)
    block = FORM.block(33)
    assert stored[f"{Q}.int8"] == Recipe((Q,), (33, 24), "INT8", transpose=True, block=block, component="codes")
    assert stored[f"{Q}.channel_scales"] == Recipe((Q,), (24,), "FLOAT16", block=block, component="scales")
    given = feeds(2, 3, 33)
    got = evaluate(model, given, source)
    for name, part in (("first", Q), ("second", K)):
        wanted = expected_product(given["x"], source.tensors[part])
        size = np.abs(wanted).max(axis=-1, keepdims=True)
        assert (size > 0.1).all()
        np.testing.assert_allclose(got[name] / size, wanted / size, atol=1e-6, rtol=0, err_msg=name)


def test_a_token_is_the_same_whoever_stands_beside_it() -> None:
    model, source = projected()
    assert fire(model, projections_pass(FORM, "all")).count == 2
    given = feeds(3, 4, 33)
    given["x"][1, 2] = 0  # a pad
    whole = evaluate(model, given, source)["first"]
    assert np.array_equal(whole[1, 2], np.zeros(24)) and np.ptp(whole) > 1
    for row, token in np.ndindex(3, 4):
        alone = {name: values[row : row + 1, token : token + 1] for name, values in given.items()}
        assert np.array_equal(evaluate(model, alone, source)["first"][0, 0], whole[row, token])


@pytest.mark.parametrize("tied", [True, False])
def test_lookup_and_head_read_one_table(tied: bool) -> None:
    columns = 33
    head = """
    flat = Constant <value_ints = [-1, 33]> ()
    whole = Constant <value_ints = [2, -1, 40]> ()
    rows = Reshape (x, flat)
    product = Gemm <transB = 1> (rows, "TABLE")
    logits = Reshape (product, whole)"""
    untied = f"""
    logits = MatMul (x, "{HEAD}")"""
    text = f"""
tabled (int64[B, S] input_ids, float[B, S, 33] x, float[40, 33] "{TABLE}"{"" if tied else f', float[33, 40] "{HEAD}"'})
    => (float[B, S, 33] embedded, float[B, S, 40] logits)
{{
    embedded = Gather <axis = 0> ("{TABLE}", input_ids){(head if tied else untied).replace("TABLE", TABLE)}
}}
"""
    model = parse(text, [TABLE, HEAD])
    for name in recipes(model):
        recipe = Recipe((name,), (40, columns))
        model.graph.initializers[name].meta[RECIPE] = recipe if name == TABLE else recipe.transposed()
    spec = with_spec(hidden_size=columns, tie_word_embeddings=tied)
    firing = fire(model, table_pass(FORM, "all"), spec)
    assert (firing.count, firing.refusals) == (2, [])
    names = {f"{TABLE}.int8_rows", f"{TABLE}.channel_scales"}
    assert set(recipes(model)) == names | (set() if tied else {f"{HEAD}.int8", f"{HEAD}.channel_scales"})
    assert operators(model)["Transpose"] == tied
    source = Checkpoint({name: weight(name, (40, columns)) for name in (TABLE, HEAD)})
    given = feeds(2, 3, columns) | {"input_ids": np.array([[3, 39, 0], [17, 3, 8]])}
    got = evaluate(model, given, source)
    assert np.array_equal(got["embedded"], dequantized(source.tensors[TABLE])[given["input_ids"]])
    wanted = expected_product(given["x"], source.tensors[TABLE if tied else HEAD])
    size = np.abs(wanted).max(axis=-1, keepdims=True)
    np.testing.assert_allclose(got["logits"] / size, wanted / size, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (f'MatMul (x, "{K}")', "MatMul (x, measured)", "measured is no weight"),
        (K, HEAD, "the head is read with the table"),
    ],
)
def test_near_misses_are_refused(old: str, new: str, reason: str) -> None:
    text = f"""
near (int64[B, S] input_ids, float[B, 33, 33] x, float[33, 24] "{Q}", float[33, 16] "{K}")
    => (float[B, S, 24] first, float[B, S, 16] z)
{{
    measured = Transpose <perm = [0, 2, 1]> (x)
    first = MatMul (x, "{Q}")
    z = MatMul (x, "{K}")
}}
"""
    model = parse(edited(text, old, new), [Q, K, HEAD])
    for name, recipe in recipes(model).items():
        model.graph.initializers[name].meta[RECIPE] = Recipe((name,), recipe.shape[::-1]).transposed()
    firing = fire(model, projections_pass(FORM, "all"), SPEC)
    assert firing.count == 1 and len(firing.refusals) == 1
    assert firing.refusals[0].startswith("MatMul z: ") and reason in firing.refusals[0]
    assert operators(model)["MatMul"] == 1
