"""Projections, table and head in blocks: the numbers are those of the dequantized matrices.

accuracy_level 4 lets the operator round activations to 8 bits, with one scale a block. The activations here are
integers up to 127, and 127 in every block, so that this rounding is exact.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx_ir as ir
import pytest

from graphs import SPEC, Array, Checkpoint, edited, evaluate, fire, operators, parse, recipes, weight, with_spec
from lfm2export.passes.block_quantize import projections_pass, table_pass
from lfm2export.quant import dequantize, quantize
from lfm2export.recipes import Formats
from lfm2export.weights import RECIPE, BlockFormat, Recipe

Q, K, HEAD, TABLE = (
    "model.layers.1.self_attn.q_proj.weight",
    "model.layers.1.self_attn.k_proj.weight",
    "lm_head.weight",
    "model.embed_tokens.weight",
)
W1, W3 = (f"model.layers.1.feed_forward.{name}.weight" for name in ("w1", "w3"))
FORMATS = [BlockFormat(4, 32, symmetric=False), BlockFormat(4, 32, symmetric=True), BlockFormat(8, 32, symmetric=True)]


def integers(*shape: int) -> Array:
    found = np.random.default_rng(5).integers(-127, 128, shape).astype(np.float32)
    found[..., ::16] = 127
    return found


def dequantized(source: Checkpoint, block: BlockFormat) -> Checkpoint:
    return Checkpoint(
        {name: dequantize(quantize(values, block), block, values.shape[1]) for name, values in source.tensors.items()}
    )


def projected(columns: int, names: tuple[str, str] = (Q, K)) -> tuple[ir.Model, Checkpoint]:
    """Two products with transposed weights, [24, columns] and [16, columns], the first with a bias."""
    text = f"""
project (float[B, S, {columns}] x, float[24] bias, float[{columns}, 24] "{names[0]}", float[{columns}, 16] "{names[1]}")
    => (float[B, S, 24] first, float[B, S, 16] second)
{{
    product = MatMul (x, "{names[0]}")
    first = Add (product, bias)
    second = MatMul (x, "{names[1]}")
}}
"""
    model = parse(text, ["bias", *names])
    for name, rows in zip(names, (24, 16), strict=True):
        recipe = Recipe((name,), (rows, columns)).transposed()
        model.graph.initializers[name].meta[RECIPE] = recipe
    source = {names[0]: weight(names[0], (24, columns)), names[1]: weight(names[1], (16, columns))}
    return model, Checkpoint(source | {"bias": weight("bias", (24,))})


@pytest.mark.parametrize("block", FORMATS)
@pytest.mark.parametrize(("size", "columns"), [(16, 80), (32, 64), (32, 80), (64, 128), (128, 160)])
def test_projections(block: BlockFormat, size: int, columns: int) -> None:
    block = BlockFormat(block.bits, size, symmetric=block.symmetric)
    before, source = projected(columns)
    after, _ = projected(columns)
    firing = fire(after, projections_pass(Formats(block, None), half=False))
    assert (firing.count, firing.refusals) == (2, [])
    assert operators(after) == {"MatMulNBits": 2, "Cast": 2, "Add": 1}
    for node in after.graph:
        if node.op_type == "MatMulNBits":
            assert node.domain == "com.microsoft"
            held = {name: attribute.value for name, attribute in node.attributes.items()}
            rows = 24 if node.inputs[1].name == f"{Q}.codes" else 16  # type: ignore[union-attr]
            wanted = {"K": columns, "N": rows, "bits": block.bits, "block_size": size}
            assert held == wanted | {"accuracy_level": 4}
    blocks = -(-columns // size)
    stored = recipes(after)
    codes = Recipe((Q,), (24, blocks, size * block.bits // 8), "UINT8", block=block, component="codes")
    assert stored[f"{Q}.codes"] == codes
    assert stored[f"{Q}.scales"] == Recipe((Q,), (24, blocks), "FLOAT16", block=block, component="scales")
    assert (f"{Q}.zero_points" in stored) == (not block.symmetric)

    exact = Checkpoint(dict(dequantized(Checkpoint({n: source.tensors[n] for n in (Q, K)}), block).tensors))
    exact = Checkpoint({**exact.tensors, "bias": source.tensors["bias"]})
    feeds = {"x": integers(2, 3, columns)}
    expected, got = evaluate(before, feeds, exact), evaluate(after, feeds, source)
    for name, values in expected.items():
        assert np.abs(values).max() > 50
        np.testing.assert_allclose(got[name], values, atol=2e-4, rtol=0, err_msg=name)


def test_packed_projections_are_quantized_together() -> None:
    block = FORMATS[0]
    text = f'packed (float[B, S, 64] x, float[64, 40] "{Q}") => (float[B, S, 40] y) {{ y = MatMul (x, "{Q}") }}'
    models = [parse(text, [Q]) for _ in range(2)]
    for model in models:
        model.graph.initializers[Q].meta[RECIPE] = Recipe((Q, K), (64, 40), transpose=True)
    before, after = models
    assert fire(after, projections_pass(Formats(block, None), half=False)).count == 1
    assert set(recipes(after)) == {f"{Q}+k_proj.{component}" for component in ("codes", "scales", "zero_points")}
    source = Checkpoint({Q: weight(Q, (24, 64)), K: weight(K, (16, 64))})
    feeds = {"x": integers(1, 2, 64)}
    expected = evaluate(before, feeds, dequantized(source, block))["y"]
    np.testing.assert_allclose(evaluate(after, feeds, source)["y"], expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("half", [False, True])
def test_gate_and_up_are_two_products_where_they_are_fused_so(half: bool) -> None:
    """Stored apart, each with its own rows; a format that nothing fuses leaves them one."""
    text = f"""
gated (float[B, S, 64] x, float[64, 48] "{W1}") => (float[B, S, 24] gate, float[B, S, 24] up)
{{
    rows = Constant <value_ints = [24, 24]> ()
    product = MatMul (x, "{W1}")
    gate, up = Split <axis = -1> (product, rows)
}}
"""
    models = [parse(text, [W1]) for _ in range(3)]
    for model in models:
        model.graph.initializers[W1].meta[RECIPE] = Recipe((W1, W3), (64, 48), transpose=True)
    before, after, packed = models
    formats = Formats(FORMATS[0], None, gate_up=FORMATS[1])
    assert fire(after, projections_pass(formats, half=half)).count == 1
    assert set(recipes(after)) == {f"{name}.{part}" for name in (W1, W3) for part in ("codes", "scales")}
    assert operators(after)["MatMulNBits"] == 2 and not operators(after)["Split"]
    assert fire(packed, projections_pass(Formats(FORMATS[1], None, gate_up=FORMATS[0]), half=half)).count == 1
    assert f"{W1}+w3.zero_points" in recipes(packed) and operators(packed)["Split"] == 1
    if half:
        return
    source = Checkpoint({W1: weight(W1, (24, 64)), W3: weight(W3, (24, 64))})
    feeds = {"x": integers(1, 2, 64)}
    expected, got = evaluate(before, feeds, dequantized(source, FORMATS[1])), evaluate(after, feeds, source)
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values, atol=2e-4, rtol=0, err_msg=name)


def test_each_matrix_has_its_own_format() -> None:
    model, _ = projected(64)
    chosen = {(K,): BlockFormat(8, 128, symmetric=True), (TABLE,): FORMATS[1]}
    assert fire(model, projections_pass(Formats(FORMATS[0], None, chosen), half=False)).count == 2
    assert {recipe.block for name, recipe in recipes(model).items() if name.startswith(Q)} == {FORMATS[0]}
    assert {recipe.block for name, recipe in recipes(model).items() if name.startswith(K)} == {chosen[K,]}


def test_embedding_and_head_may_differ_where_they_are_two() -> None:
    model = tabled(64, tied=False)
    formats = Formats(None, FORMATS[2], {(TABLE,): FORMATS[0]})
    spec = with_spec(hidden_size=64, tie_word_embeddings=False)
    assert fire(model, table_pass(formats, "portable", half=False), spec).count == 2
    assert recipes(model)[f"{TABLE}.codes"].block == FORMATS[0]
    assert recipes(model)[f"{HEAD}.codes"].block == FORMATS[2]


def test_a_matrix_without_a_format_is_refused() -> None:
    model, _ = projected(64)
    firing = fire(model, projections_pass(Formats(None, FORMATS[0], {(Q,): FORMATS[1]}), half=False))
    assert firing.count == 1 and f"{K} has no block format" in firing.refusals[0]


def test_scales_are_read_as_they_are_where_activations_are_half() -> None:
    model, _ = projected(64)
    assert fire(model, projections_pass(Formats(FORMATS[0], None), half=True)).count == 2
    assert operators(model) == {"MatMulNBits": 2, "Add": 1}


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (f'MatMul (x, "{K}")', "MatMul (x, measured)", "measured is no weight"),
        (K, HEAD, "the head has the table's format"),
    ],
)
def test_near_misses_are_refused(old: str, new: str, reason: str) -> None:
    text = f"""
near (float[B, 64, 64] x, float[64, 24] "{Q}", float[64, 16] "{K}") => (float[B, S, 24] y, float[B, S, 16] z)
{{
    measured = Transpose <perm = [0, 2, 1]> (x)
    y = MatMul (x, "{Q}")
    z = MatMul (x, "{K}")
}}
"""
    model = parse(edited(text, old, new), [Q, K, HEAD])
    for name, recipe in recipes(model).items():
        model.graph.initializers[name].meta[RECIPE] = Recipe((name,), recipe.shape[::-1]).transposed()
    firing = fire(model, projections_pass(Formats(FORMATS[0], None), half=False), SPEC)
    assert firing.count == 1 and len(firing.refusals) == 1
    assert firing.refusals[0].startswith("MatMul z: ") and reason in firing.refusals[0]
    assert operators(model)["MatMul"] == 1


def tabled(columns: int, *, tied: bool = True, half: bool = False) -> ir.Model:
    """A lookup, and the head on activations of its own; V 40."""
    kind = "float16" if half else "float"
    head = """
    flat = Constant <value_ints = [-1, COLUMNS]> ()
    whole = Constant <value_ints = [2, -1, 40]> ()
    rows = Reshape (x, flat)
    product = Gemm <transB = 1> (rows, "TABLE")
    logits = Reshape (product, whole)"""
    text = f"""
tabled (int64[B, S] ids, {kind}[B, S, {columns}] x, {kind}[40, {columns}] "{TABLE}"UNTIED)
    => ({kind}[B, S, {columns}] embedded, {kind}[B, S, 40] logits)
{{
    embedded = Gather <axis = 0> ("{TABLE}", ids){
        head
        if tied
        else f'''
    logits = MatMul (x, "{HEAD}")'''
    }
}}
"""
    untied = "" if tied else f', {kind}[{columns}, 40] "{HEAD}"'
    text = text.replace("UNTIED", untied).replace("COLUMNS", str(columns)).replace('"TABLE"', f'"{TABLE}"')
    model = parse(text, [TABLE, HEAD])
    for name in recipes(model):
        recipe = Recipe((name,), (40, columns), "FLOAT16" if half else "FLOAT")
        model.graph.initializers[name].meta[RECIPE] = recipe if name == TABLE else recipe.transposed()
    return model


def table_feeds(columns: int, *, half: bool = False) -> dict[str, Array]:
    x = integers(2, 3, columns)
    return {"ids": np.array([[3, 39, 0], [17, 3, 8]]), "x": x.astype(np.float16) if half else x}


#: (block size, columns): blocks even, odd (4-bit zero points end with padding), and with a last one not filled.
SHAPES = [(16, 80), (32, 64), (32, 96), (32, 80), (64, 64), (128, 64), (256, 512)]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("bits", "symmetric"), list(product((4, 8), (False, True))))
@pytest.mark.parametrize(("size", "columns"), SHAPES)
def test_lookup_and_head_read_one_table(bits: int, symmetric: bool, size: int, columns: int, tied: bool) -> None:
    block = BlockFormat(4 if bits == 4 else 8, size, symmetric=symmetric)
    before, after = tabled(columns, tied=tied), tabled(columns, tied=tied)
    spec = with_spec(hidden_size=columns, tie_word_embeddings=tied)
    firing = fire(after, table_pass(Formats(None, block), "portable", half=False), spec)
    assert (firing.count, firing.refusals) == (2, [])
    names = [TABLE] if tied else [TABLE, HEAD]
    components = ["codes", "scales"] if symmetric else ["codes", "scales", "zero_points"]
    assert set(recipes(after)) == {f"{name}.{component}" for name in names for component in components}
    count = operators(after)
    assert count["MatMulNBits"] == 1 and not set(count) & {"Gemm", "MatMul", "GatherBlockQuantized"}
    assert ("BitShift" in count) == (bits == 4)
    for node in after.graph:  # Gather on float16 scales fails on a WebGPU without f16
        if node.op_type == "Gather":
            assert node.inputs[0] is not None and node.inputs[0].dtype != ir.DataType.FLOAT16
    source = Checkpoint({name: weight(name, (40, columns)) for name in names})
    feeds = table_feeds(columns)
    expected, got = evaluate(before, feeds, dequantized(source, block)), evaluate(after, feeds, source)
    assert np.ptp(expected["embedded"]) > 0.2
    assert np.array_equal(got["embedded"], expected["embedded"])
    np.testing.assert_allclose(got["logits"], expected["logits"], atol=2e-4, rtol=0)


@pytest.mark.parametrize(("bits", "symmetric"), list(product((4, 8), (False, True))))
def test_a_lookup_in_half_is_rounded_once(bits: int, symmetric: bool) -> None:
    block = BlockFormat(4 if bits == 4 else 8, 32, symmetric=symmetric)
    after = tabled(96, half=True)
    assert fire(after, table_pass(Formats(None, block), "portable", half=True), with_spec(hidden_size=96)).count == 2
    source = Checkpoint({TABLE: weight(TABLE, (40, 96))})
    feeds = table_feeds(96, half=True)
    exact = dequantized(source, block).tensors[TABLE]
    got = evaluate(after, feeds, source)
    assert np.array_equal(got["embedded"], exact[feeds["ids"]].astype(np.float16))
    # Logits of up to 400 in float16, whose step is 0.25 there.
    np.testing.assert_allclose(got["logits"], feeds["x"].astype(np.float32) @ exact.T, atol=0.25, rtol=0)


@pytest.mark.parametrize(("bits", "size", "columns"), [(4, 16, 64), (4, 32, 80), (8, 32, 96), (8, 128, 64)])
def test_gather_block_quantized_reads_the_same_table(bits: int, size: int, columns: int) -> None:
    block = BlockFormat(4 if bits == 4 else 8, size, symmetric=True)
    before, after = tabled(columns), tabled(columns)
    firing = fire(
        after, table_pass(Formats(None, block), "gather_block_quantized", half=False), with_spec(hidden_size=columns)
    )
    assert (firing.count, firing.refusals) == (2, [])
    count = operators(after)
    assert count["GatherBlockQuantized"] == 1 and "Gather" not in count
    source = Checkpoint({TABLE: weight(TABLE, (40, columns))})
    feeds = table_feeds(columns)
    expected, got = evaluate(before, feeds, dequantized(source, block)), evaluate(after, feeds, source)
    assert np.array_equal(got["embedded"], expected["embedded"])
    np.testing.assert_allclose(got["logits"], expected["logits"], atol=2e-4, rtol=0)


def test_gather_block_quantized_takes_no_zero_points() -> None:
    model = tabled(64)
    firing = table_pass(Formats(None, FORMATS[0]), "gather_block_quantized", half=False)(
        model, with_spec(hidden_size=64)
    )
    assert firing.count == 1 and "GatherBlockQuantized reads zero points in another layout" in firing.refusals[0]
    assert operators(model)["Gather"] == 1


@pytest.mark.parametrize(
    ("op_type", "place", "reason"),
    [
        ("Gather", 0, "Gather embedded: x is no weight"),
        ("Gemm", 0, "Gemm product: expected Reshape before x, found a graph input or initializer"),
        ("Gemm", 1, "Gemm product: x is no weight"),
    ],
)
def test_near_misses_of_the_table_are_refused(op_type: str, place: int, reason: str) -> None:
    model = tabled(64)
    node = next(node for node in model.graph if node.op_type == op_type)
    node.replace_input_with(place, model.graph.inputs[1])
    firing = table_pass(Formats(None, FORMATS[0]), "portable", half=False)(model, with_spec(hidden_size=64))
    assert (firing.count, firing.refusals) == (1, [reason])
