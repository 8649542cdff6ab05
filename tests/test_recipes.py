"""The graphs of every recipe: contract, size, nothing left for an independent simplifier, and misses are errors."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Literal

import onnx
import onnx_ir as ir
import onnxsim
import pytest

from lfm2export import passes
from lfm2export.contract import LOGITS_FROM_END, LogitsMode
from lfm2export.errors import GraphError, Lfm2ExportError
from lfm2export.passes import Pass, cleanup
from lfm2export.passes.matching import Firing
from lfm2export.passes.precision import precision_passes
from lfm2export.pipeline import check_contract, dtype_graph
from lfm2export.recipes import (
    BLOCK_SIZES,
    RECIPES,
    TABLE_BITS,
    TABLES,
    Formats,
    Options,
    body_format,
    formats,
    gate_up_format,
    profiled,
    table_format,
)
from lfm2export.spec import CONV, FULL_ATTENTION, ModelSpec
from lfm2export.stack import stack
from lfm2export.weights import RECIPE, BlockFormat, Recipe
from lfm2export.writer import write_model
from passes.graphs import checkpoint
from passes.traces import KINDS_350M, ODD, SPEC, fused, shared_fused, traced

#: The layers of the 350M on small matrices (structure does not depend on widths); the same with an untied head and
#: biases, which take two additions a conv layer.
GRAPHS: dict[LogitsMode, ModelSpec] = {
    "last": replace(SPEC, layer_types=KINDS_350M),
    "all": replace(ODD, layer_types=KINDS_350M),
}
MOST_NODES = 362
#: A rounding takes six nodes, a product four.
MOST_INT8_NODES = 940
BIASES = {"last": 0, "all": 2 * KINDS_350M.count(CONV)}
#: float16 files have the gate's SiLU in two operators, which are one once loaded.
SILU = {False: 0, True: len(KINDS_350M)}
#: Float files know no blocks, and the 8-bit file has an 8-bit table.
COMBINATIONS = [
    *product(("fp32", "fp16"), GRAPHS, (32,), (False,), (8,)),
    *product(("q8",), GRAPHS, BLOCK_SIZES, (False, True), (8,)),
    *product(("q4", "q4f16"), GRAPHS, BLOCK_SIZES, (None, False, True), TABLE_BITS),
]


def size(model: ir.Model) -> int:
    """Nodes, Casts of initializers not counted: every session folds them when it loads."""
    return sum(node.op_type != "Cast" or not node.inputs[0].is_initializer() for node in model.graph)  # type: ignore[union-attr]


def chosen(logits: LogitsMode, block_size: int = 32, symmetric: bool | None = None, table_bits: int = 8) -> Options:
    bits: Literal[4, 8] = 4 if table_bits == 4 else 8
    return Options(logits, block_size, symmetric, table_bits=bits, quantizer="round", q8="blocks")


@pytest.mark.parametrize("logits", GRAPHS)
def test_the_fused_350m_is_small(logits: LogitsMode) -> None:
    assert size(shared_fused(GRAPHS[logits], logits)) <= MOST_NODES + BIASES[logits]


@pytest.mark.parametrize(("dtype", "logits", "block_size", "symmetric", "table_bits"), COMBINATIONS)
def test_every_combination_keeps_contract_and_size(
    dtype: str, logits: LogitsMode, block_size: int, symmetric: bool | None, table_bits: int
) -> None:
    options = chosen(logits, block_size, symmetric, table_bits)
    spec = GRAPHS[logits] if block_size == 32 else replace(GRAPHS[logits], layer_types=KINDS_350M[:4])
    model = dtype_graph(shared_fused(spec, logits), spec, dtype, options)  # checks the contract
    assert size(model) <= MOST_NODES + BIASES[logits] + SILU[RECIPES[dtype].half]
    assert model.ir_version == 10 and dict(model.opset_imports) == {"": 21, "com.microsoft": 1}
    names = [node.name for node in model.graph]
    assert len(set(names)) == len(names)
    held = {name: value.meta[RECIPE] for name, value in model.graph.initializers.items() if RECIPE in value.meta}
    _check_weights(held, spec, dtype, options)


@pytest.mark.parametrize("logits", GRAPHS)
def test_every_matrix_of_the_int8_file_is_stored_by_channel(logits: LogitsMode) -> None:
    spec = GRAPHS[logits]
    model = dtype_graph(shared_fused(spec, logits), spec, "q8", Options(logits))
    assert size(model) <= MOST_INT8_NODES + BIASES[logits]
    count = Counter(node.op_type for node in model.graph)
    products = 4 * spec.num_hidden_layers + 1
    assert count["MatMulIntegerToFloat"] == count["QuantizeLinear"] == products
    assert not count["MatMul"] + count["MatMulNBits"]
    held = {name: value.meta[RECIPE] for name, value in model.graph.initializers.items() if RECIPE in value.meta}
    matrices = {name for name, shape in spec.source_tensors().items() if len(shape) == 2}
    for component, dtype in (("codes", "INT8"), ("scales", "FLOAT16")):
        found = [recipe for recipe in held.values() if recipe.block is not None and recipe.component == component]
        assert {part for recipe in found for part in recipe.parts} == matrices
        assert {recipe.dtype for recipe in found} == {dtype}
        assert len(found) == products + (0 if spec.tie_word_embeddings else 1)


def _check_weights(held: dict[str, Recipe], spec: ModelSpec, dtype: str, options: Options) -> None:
    """Every tensor of the checkpoint is stored in one initializer, in the format of its role."""
    body, table, gate_up = (of(dtype, options) for of in (body_format, table_format, gate_up_format))
    stored: dict[str, list[Recipe]] = {name: [] for name in spec.source_tensors()}
    for recipe in held.values():
        for part in set(recipe.parts):
            stored[part].append(recipe)
    for name, shape in spec.source_tensors().items():
        block = table if name in TABLES else body if len(shape) == 2 else None
        if name.endswith((".w1.weight", ".w3.weight")):
            block = gate_up
        components = [recipe.component for recipe in stored[name]]
        assert {recipe.block for recipe in stored[name]} == {block}, name
        if block is None:
            assert components == ["values"], name
            assert stored[name][0].dtype == ("FLOAT16" if RECIPES[dtype].half else "FLOAT"), name
        else:
            wanted = ["codes", "scales"] if block.symmetric else ["codes", "scales", "zero_points"]
            assert sorted(components) == wanted, name


def test_formats_by_role() -> None:
    plain, small = Options(), Options(block_size=128, symmetric=True, table_bits=4, quantizer="round")
    assert body_format("fp32", plain) is table_format("fp16", plain) is None
    assert body_format("q8", plain) == BlockFormat(8, 32, symmetric=True)
    assert table_format("q8", small) == BlockFormat(8, 128, symmetric=True, quantizer="round")  # never 4 bits
    assert body_format("q4", plain) == body_format("q4f16", plain) == BlockFormat(4, 32, symmetric=False)
    assert table_format("q4", plain) == BlockFormat(8, 32, symmetric=True)
    assert table_format("q4f16", replace(plain, table_bits=4)) == BlockFormat(4, 32, symmetric=False)
    assert (
        body_format("q4", small) == table_format("q4", small) == BlockFormat(4, 128, symmetric=True, quantizer="round")
    )


W1, W3 = (f"model.layers.0.feed_forward.{name}.weight" for name in ("w1", "w3"))


def test_gate_and_up_have_no_zero_points_where_webgpu_fuses_them_so() -> None:
    plain = BlockFormat(4, 32, symmetric=False)
    free = replace(plain, symmetric=True)
    for dtype in ("q4", "q4f16"):
        found = formats(dtype, Options())
        assert found.of((W1, W3)) == free and found.of((W3,)) == found.of(("a.q_proj.weight",)) == plain
        assert found.apart((W1, W3)) and not found.apart((W1,)) and not found.apart((W3, W1))
    for options in (Options(symmetric=False), Options(block_size=64), profiled("cpu")):
        asked = formats("q4", options)
        assert asked.of((W1, W3)) == asked.body and not asked.apart((W1, W3))
    assert formats("q4", Options(symmetric=True)).apart((W1, W3))
    assert not any(formats(dtype, Options()).apart((W1, W3)) for dtype in ("fp32", "fp16", "q8"))
    assert not formats("q8", Options(q8="blocks")).apart((W1, W3))
    eight = BlockFormat(8, 32, symmetric=True)
    assert not Formats(plain, None, {(W1, W3): eight}, gate_up=free).apart((W1, W3))
    assert Formats(plain, None, {(W1, W3): free}).apart((W1, W3))


@pytest.mark.parametrize("dtype", RECIPES)
def test_convolutions_are_fused_in_the_4_bit_files_of_the_web_profile(dtype: str) -> None:
    spec = GRAPHS["last"]
    for options in (profiled("web"), profiled("cpu"), profiled("web", operators="plain")):
        count = Counter(node.op_type for node in dtype_graph(shared_fused(spec), spec, dtype, options).graph)
        fused = dtype in ("q4", "q4f16") and options.operators == "few"
        assert count["CausalConvWithState"] == (len(spec.conv_layers) if fused else 0)


def test_options_that_cannot_be_are_refused() -> None:
    with pytest.raises(Lfm2ExportError, match=r"block size is 48, expected one of \(16, 32, 64, 128, 256\)"):
        Options(block_size=48)
    with pytest.raises(Lfm2ExportError, match="GatherBlockQuantized cannot read this table's zero points; add --symm"):
        Options(lookup="gather_block_quantized", table_bits=4)
    for options in ({"symmetric": True, "table_bits": 4}, {"table_bits": 8}):
        assert Options(lookup="gather_block_quantized", **options).lookup == "gather_block_quantized"  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["q8", "q4", "q4f16"])
def test_gather_block_quantized_is_there_only_when_asked_for(dtype: str) -> None:
    spec = GRAPHS["last"]
    asked = Options(symmetric=True, table_bits=4, lookup="gather_block_quantized", q8="blocks")
    for options, count in ((asked, 1), (replace(asked, lookup="portable"), 0)):
        model = dtype_graph(shared_fused(spec), spec, dtype, options)
        assert sum(node.op_type == "GatherBlockQuantized" for node in model.graph) == count


def simplified(path: Path) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The file with its weights, and what onnxsim makes of it without folding constants."""
    model = onnx.load(path)
    with contextlib.redirect_stdout(io.StringIO()):  # it says that it keeps SimplifiedLayerNormalization as it is
        after, _ = onnxsim.simplify(model, skip_constant_folding=True, certify=False)
    return model, after


@pytest.mark.parametrize("logits", GRAPHS)
@pytest.mark.parametrize(
    ("dtype", "table_bits", "symmetric"),
    [("fp32", 8, False), ("fp16", 8, False), ("q8", 8, False), *product(("q4", "q4f16"), (4, 8), (None, True))],
)
def test_an_independent_simplifier_removes_no_node(
    dtype: str, table_bits: int, symmetric: bool | None, logits: LogitsMode, tmp_path: Path
) -> None:
    spec = replace(GRAPHS[logits], layer_types=(CONV, FULL_ATTENTION, CONV))
    graph = dtype_graph(shared_fused(spec, logits), spec, dtype, chosen(logits, 16, symmetric, table_bits))
    write_model(graph, checkpoint(spec.source_tensors()), tmp_path / "model.onnx", threads=1)
    before, after = simplified(tmp_path / "model.onnx")
    left = {node.name for node in after.graph.node}
    idle = _idle_by_default(before)
    assert len(idle) == (2 if logits == "last" else 0)
    assert [node.name for node in before.graph.node if node.name not in left] == idle
    assert len(after.graph.node) == len(before.graph.node) - len(idle)


def _idle_by_default(model: onnx.ModelProto) -> list[str]:
    """What does nothing unless `logits_from_end` is fed: whoever takes its default for a constant drops it."""
    reader = next((node for node in model.graph.node if LOGITS_FROM_END in node.input), None)
    return [] if reader is None else [reader.name, *(n.name for n in model.graph.node if reader.output[0] in n.input)]


def test_the_simplifier_would_find_what_is_idle(tmp_path: Path) -> None:
    """Positive control: a Reshape to the shape that is there already, an Identity, a pair of Transposes."""
    spec = replace(SPEC, layer_types=(CONV, FULL_ATTENTION, CONV))
    graph = dtype_graph(shared_fused(spec), spec, "fp32", chosen("last"))
    write_model(graph, checkpoint(spec.source_tensors()), tmp_path / "model.onnx", threads=1)
    model = onnx.load(tmp_path / "model.onnx")
    embedded = next(node for node in model.graph.node if node.op_type == "Gather")
    name = embedded.output[0]
    embedded.output[0] = "embedded"
    idle = [
        onnx.helper.make_node("Identity", ["embedded"], ["same"], "idle_1"),
        onnx.helper.make_node("Transpose", ["same"], ["turned"], "idle_2", perm=[0, 2, 1]),
        onnx.helper.make_node("Transpose", ["turned"], [name], "idle_3", perm=[0, 2, 1]),
    ]
    place = list(model.graph.node).index(embedded) + 1
    for offset, node in enumerate(idle):
        model.graph.node.insert(place + offset, node)
    onnx.save(model, tmp_path / "idle.onnx")
    before, after = simplified(tmp_path / "idle.onnx")
    left = {node.name for node in after.graph.node}
    assert [node.name for node in before.graph.node if node.name not in left] == [
        "idle_1",
        "idle_2",
        "idle_3",
        *_idle_by_default(before),
    ]


@pytest.mark.parametrize("step", passes.fusions("last"), ids=lambda step: step.name)
def test_a_fusion_that_fires_too_rarely_is_an_error(step: Pass) -> None:
    """Each in turn is asked to fire once more than it can, among all the others."""
    spec = replace(SPEC, layer_types=(CONV, FULL_ATTENTION, CONV))
    model = traced(SPEC)
    cleanup.fold(model)
    stack(model, spec)
    cleanup.merge(model)
    found = step.expected(spec)
    asked = [replace(s, expected=lambda spec: found + 1) if s is step else s for s in passes.fusions("last")]
    with pytest.raises(
        GraphError, match=rf"pass {step.name} fired {found} times, expected {found + 1}: .+\. The install"
    ):
        passes.run(model, spec, asked)


def test_a_layer_that_transformers_writes_otherwise_is_an_error() -> None:
    """One norm of eleven computes with another power: not fused in silence, nor passed over."""
    spec = replace(SPEC, layer_types=(CONV, FULL_ATTENTION, CONV))
    model = traced(SPEC)
    cleanup.fold(model)
    stack(model, spec)
    cleanup.merge(model)
    power = next(node for node in model.graph if node.op_type == "Pow")
    power.replace_input_with(1, model.graph.initializers["model.layers.0.operator_norm.weight"])
    with pytest.raises(GraphError, match=r"pass rms_norm fired 8 times, expected 9: Reciprocal .*: .* is no constant"):
        passes.run(model, spec, passes.fusions("last"))


@pytest.mark.parametrize("dtype", RECIPES)
def test_a_precision_pass_that_fires_too_rarely_is_an_error(dtype: str) -> None:
    """A spec with one layer of each kind more than the graph has."""
    spec = replace(SPEC, layer_types=(CONV, FULL_ATTENTION, CONV))
    larger = replace(spec, layer_types=(*spec.layer_types, FULL_ATTENTION, CONV))
    steps = precision_passes(dtype, spec, chosen("last"))
    if dtype == "fp32":
        with pytest.raises(
            GraphError, match=r"fp32: input is \('logits_from_end', .* the contract says \('past_key_values\.3\.key'"
        ):
            dtype_graph(shared_fused(spec), larger, dtype, chosen("last"))
        return
    with pytest.raises(
        GraphError, match=rf"pass {steps[0].name} fired \d+ times, expected {steps[0].expected(larger)}: "
    ):
        dtype_graph(shared_fused(spec), larger, dtype, chosen("last"))


def test_reasons_of_refusals_are_in_the_error_and_a_pass_may_not_fire_too_often() -> None:
    def odd(model: ir.Model, spec: ModelSpec) -> Firing:
        return Firing(count=3, refusals=["first reason", "second", "third", "fourth"])

    with pytest.raises(GraphError, match=r"pass odd fired 3 times, expected 4: first reason; second; third. The inst"):
        passes.run(fused(GRAPHS["last"]), GRAPHS["last"], [Pass("odd", odd, lambda spec: 4)])
    with pytest.raises(GraphError, match="pass odd fired 3 times, expected 2"):
        passes.run(fused(GRAPHS["last"]), GRAPHS["last"], [Pass("odd", odd, lambda spec: 2)])


def test_run_counts_firings() -> None:
    spec = GRAPHS["last"]
    model = fused(spec)
    steps = precision_passes("q4", spec, chosen("last"))
    assert passes.run(model, spec, steps) == {step.name: step.expected(spec) for step in steps}
    assert [step.name for step in steps] == ["rotary_table", "causal_conv", "block_quantize", "block_table", "naming"]
    assert [step.name for step in precision_passes("fp32", spec, Options())] == ["naming"]
    assert next(step.name for step in precision_passes("q4f16", spec, profiled("cpu"))) == "half"
    assert "last_token" not in [step.name for step in passes.fusions("all")]


@pytest.mark.parametrize("dtype", RECIPES)
def test_a_graph_of_another_dtype_breaks_the_contract(dtype: str) -> None:
    spec = GRAPHS["last"]
    model = dtype_graph(shared_fused(spec), spec, dtype, chosen("last"))
    other = "fp32" if RECIPES[dtype].half else "fp16"
    with pytest.raises(GraphError, match=rf"{other}: input is \('past_conv\.0', 'FLOAT(16)?', .*the contract says"):
        check_contract(model, spec, other, "last")


def test_a_profile_chooses_and_an_option_overrides_it() -> None:
    assert profiled("web") == Options() and profiled("cpu") == Options(block_size=256, operators="plain")
    asked = profiled("cpu", block_size=64, table_bits=None, symmetric=True, operators="few")
    assert asked == Options(block_size=64, symmetric=True)
    with pytest.raises(Lfm2ExportError, match="block size is 48"):
        profiled("cpu", block_size=48)
