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
from lfm2export.weights import RECIPE, ChannelFormat, Recipe, stacked_name

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
    assert count["MatMulIntegerToFloat"] == 2 and "MatMul" not in count
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


GATED = ("model.layers.0.feed_forward.w1.weight", "model.layers.0.feed_forward.w3.weight")
DOWN, IN, OUT = (
    "model.layers.0.feed_forward.w2.weight",
    "model.layers.0.conv.in_proj.weight",
    "model.layers.0.conv.out_proj.weight",
)


def with_weights(text: str, *weights: tuple[tuple[str, ...], int, int]) -> tuple[ir.Model, Checkpoint]:
    """The model of `text`, with stacked matrices of N rows (each part its share) and K columns stored transposed."""
    model = parse(text, [stacked_name(parts) for parts, _, _ in weights])
    tensors = {}
    for parts, rows, columns in weights:
        value = model.graph.initializers[stacked_name(parts)]
        value.meta[RECIPE] = Recipe(parts, (rows, columns)).transposed()
        tensors |= {part: weight(part, (rows // len(parts), columns)) for part in parts}
    return model, Checkpoint(tensors)


def ffn(width: int, reader: str = "") -> tuple[ir.Model, Checkpoint]:
    stacked = stacked_name(GATED)
    return with_weights(
        f"""
ffn (int64[B, S] input_ids, float[B, S, 32] x, float[32, {2 * width}] "{stacked}", float[{width}, 24] "{DOWN}")
    => (float[B, S, 24] y{", float[B, S, N] other" if reader else ""})
{{
    both = MatMul (x, "{stacked}")
    sizes = Constant <value_ints = [{width}, {width}]> ()
    gate, up = Split <axis = -1> (both, sizes)
    opened = com.microsoft.QuickGelu <alpha = 1.0> (gate)
    hidden = Mul (opened, up)
    y = MatMul (hidden, "{DOWN}"){reader}
}}
""",
        (GATED, 2 * width, 32),
        ((DOWN,), 24, width),
    )


def conv(hidden: int) -> tuple[ir.Model, Checkpoint]:
    """A convolution of one tap beside its token, whose state is an output."""
    return with_weights(
        f"""
conv (int64[B, S] input_ids, float[B, S, 32] x, float[32, {3 * hidden}] "{IN}", float[{hidden}, 24] "{OUT}")
    => (float[B, S, 24] y, float[B, S, {hidden}] state)
{{
    BCx = MatMul (x, "{IN}")
    b, c, v = Split <axis = -1, num_outputs = 3> (BCx)
    state = Mul (b, v)
    moved = Neg (state)
    gated = Mul (c, moved)
    y = MatMul (gated, "{OUT}")
}}
""",
        ((IN,), 3 * hidden, 32),
        ((OUT,), 24, hidden),
    )


def stacked_product(x: Array, source: Checkpoint, parts: tuple[str, ...]) -> Array:
    return expected_product(x, np.concatenate([source.tensors[part] for part in parts]))


def assert_close(got: Array, wanted: Array) -> None:
    """To what float32 loses, token by token; but a code may be another one where it lies between two."""
    size = np.abs(wanted).max(axis=-1, keepdims=True)
    share = np.abs(got - wanted) / np.where(size == 0, 1, size)
    assert (share.max(axis=-1) < 2e-6).mean() > 0.8 and share.max() < 0.02


@pytest.mark.parametrize("width", [40, 256])
def test_up_leaves_its_scale_to_the_product_that_reads_it(width: int) -> None:
    model, source = ffn(width)
    assert fire(model, projections_pass(FORM, "all")).count == 2
    cleanup.merge(model)
    padded = 2 * width + (64 if width == 256 else 0)
    assert recipes(model)[f"{stacked_name(GATED)}.int8"].shape == (32, padded)
    gelu = next(node for node in model.graph if node.op_type == "QuickGelu")
    split = next(node for node in model.graph if node.op_type == "Split")
    assert gelu.inputs[0].producer().op_type == "Mul" and split.inputs[0].producer().op_type == "MatMulIntegerToFloat"
    assert operators(model)["Flatten"] == 1 and operators(model)["Reshape"] == 1
    given = feeds(2, 3, 32)
    given["x"][1, 2] = 0  # a pad
    both = stacked_product(given["x"], source, GATED).astype(np.float32)
    gate, up = both[..., :width], both[..., width:]
    hidden = gate / (1 + np.exp(-gate)) * up
    got = evaluate(model, given, source)["y"]
    assert_close(got, stacked_product(hidden, source, (DOWN,)))
    assert np.array_equal(got[1, 2], np.zeros(24)) and np.ptp(got) > 1
    for row, token in np.ndindex(2, 3):
        alone = {name: values[row : row + 1, token : token + 1] for name, values in given.items()}
        assert np.array_equal(evaluate(model, alone, source)["y"][0, 0], got[row, token])


@pytest.mark.parametrize("hidden", [40, 512])
def test_b_and_x_take_their_scale_and_c_leaves_it(hidden: int) -> None:
    model, source = conv(hidden)
    assert fire(model, projections_pass(FORM, "all")).count == 2
    cleanup.merge(model)
    given = feeds(2, 3, 32)
    given["x"][0, 1] = 0
    b, c, x = np.split(stacked_product(given["x"], source, (IN,)).astype(np.float32), 3, axis=-1)
    got = evaluate(model, given, source)
    state = (b * x).astype(np.float32)
    size = np.abs(state).max(axis=-1, keepdims=True)
    np.testing.assert_allclose(got["state"], state, atol=float(2e-6 * size.max()), rtol=2e-6)
    assert_close(got["y"], stacked_product(c * -state, source, (OUT,)))
    assert np.array_equal(got["y"][0, 1], np.zeros(24)) and np.ptp(got["y"]) > 1


@pytest.mark.parametrize(
    "reader", ["\n    other = Neg (up)", "\n    other = Neg (opened)", "\n    other = Neg (hidden)"]
)
def test_a_part_that_another_reads_has_its_scale(reader: str) -> None:
    model, source = ffn(40, reader)
    assert fire(model, projections_pass(FORM, "all")).count == 2
    split = next(node for node in model.graph if node.op_type == "Split")
    assert split.inputs[0].producer().op_type == "Reshape"
    given = feeds(2, 3, 32)
    gate, up = np.split(stacked_product(given["x"], source, GATED).astype(np.float32), 2, axis=-1)
    opened = gate / (1 + np.exp(-gate))
    got = evaluate(model, given, source)
    wanted = {"up": up, "opened": opened, "hidden": opened * up}[reader.split("(")[1].rstrip(")")]
    assert_close(got["other"], -wanted)
    assert_close(got["y"], stacked_product(opened * up, source, (DOWN,)))


def test_the_padding_of_a_head_is_cut_off() -> None:
    rows = 512
    text = f"""
head (int64[B, S] input_ids, float[B, S, 33] x, float[33, {rows}] "{HEAD}", float[40, 33] "{TABLE}")
    => (float[B, S, {rows}] logits, float[B, S, 33] embedded)
{{
    logits = MatMul (x, "{HEAD}")
    embedded = Gather <axis = 0> ("{TABLE}", input_ids)
}}
"""
    model = parse(text, [TABLE, HEAD])
    for name, recipe in recipes(model).items():
        plain = Recipe((name,), (rows if name == HEAD else 40, 33))
        model.graph.initializers[name].meta[RECIPE] = plain.transposed() if name == HEAD else plain
        assert recipe.parts == (name,)
    spec = with_spec(hidden_size=33, tie_word_embeddings=False)
    assert fire(model, table_pass(FORM, "all"), spec).count == 2
    assert recipes(model)[f"{HEAD}.int8"].shape == (33, rows + 64)
    source = Checkpoint({HEAD: weight(HEAD, (rows, 33)), TABLE: weight(TABLE, (40, 33))})
    given = feeds(2, 3, 33)
    got = evaluate(model, given, source)["logits"]
    assert got.shape == (2, 3, rows)
    wanted = expected_product(given["x"], source.tensors[HEAD])
    size = np.abs(wanted).max(axis=-1, keepdims=True)
    np.testing.assert_allclose(got / size, wanted / size, atol=1e-6, rtol=0)
