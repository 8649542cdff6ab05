"""The parts of verification, each by itself: copies of graphs, stored weights, routes, greedy answers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from lfm2export.artifact import available_models
from lfm2export.checkpoint import open_checkpoint
from lfm2export.contract import LogitsMode
from lfm2export.errors import ArtifactError
from lfm2export.measures import LogitsMeasure
from lfm2export.recipes import RECIPES
from lfm2export.reference import load_reference
from lfm2export.reference.memory import MemoryReference
from lfm2export.runtime import OnnxModel
from lfm2export.spec import parse_spec
from lfm2export.synth import family_config
from lfm2export.untrusted.onnx_file import read_model
from lfm2export.verify.expected import expect, write
from lfm2export.verify.figures import CacheSeries, CheckName, Form, StepPoint, StepsMeasure
from lfm2export.verify.file import Plan
from lfm2export.verify.greedy import measure_greedy
from lfm2export.verify.nibbles import split_bytes
from lfm2export.verify.prompts import Prompt
from lfm2export.verify.routes import at_once, padded, uneven_rows
from lfm2export.verify.steps import first_failure
from lfm2export.verify.stored import read_stored
from lfm2export.verify.variants import all_positions, exact_copy, is_exact, open_graph
from lfm2export.verify.weights import measure_weights

TOKENS = np.array([[1, 20, 300, 41, 77, 500, 33]])

Artifact = Callable[[LogitsMode], Path]


def opened(
    folder: Path, dtype: str, model: onnx.ModelProto, given: Mapping[str, np.ndarray] | None = None
) -> OnnxModel:
    return OnnxModel(folder, dtype, graph=model.SerializeToString(), given=given, threads=1)


@pytest.mark.parametrize("dtype", RECIPES)
def test_the_exact_copy_is_the_file_without_rounding_of_activations(tiny_artifact: Artifact, dtype: str) -> None:
    folder = tiny_artifact("last")
    model = read_model(available_models(folder)[dtype])
    assert is_exact(model) == (dtype == "fp32")
    copy = exact_copy(model)
    assert is_exact(model) == (dtype == "fp32")  # the original is left alone
    levels = {a.i for node in copy.graph.node for a in node.attribute if a.name == "accuracy_level"}
    assert levels <= {0}
    given = split_bytes(copy.graph, available_models(folder)[dtype].parent)
    assert bool(given) == (dtype in ("q4", "q4f16"))  # whose table has blocks of 8 bits
    exact, shipped = opened(folder, dtype, copy, given), OnnxModel(folder, dtype, threads=1)
    assert exact.cache_dtype == "float32"
    mine, _ = exact.step(TOKENS, exact.new_state())
    theirs, _ = shipped.step(TOKENS, shipped.new_state())
    difference = float(np.abs(mine - theirs).max())
    assert difference == 0 if dtype == "fp32" else 0 < difference < 0.6


@pytest.mark.parametrize("dtype", RECIPES)
@pytest.mark.parametrize("logits", ["last", "all"])
def test_every_position_has_the_logits_of_its_prefix(tiny_artifact: Artifact, dtype: str, logits: LogitsMode) -> None:
    folder = tiny_artifact(logits)
    every = all_positions(read_model(available_models(folder)[dtype]))
    assert every is not None
    model, plain = opened(folder, dtype, every), OnnxModel(tiny_artifact("last"), dtype, threads=1)
    rows = model.step(TOKENS, model.new_state())[0].reshape(TOKENS.shape[1], -1)
    for stop in range(1, TOKENS.shape[1] + 1):
        wanted, _ = plain.step(TOKENS[:, :stop], plain.new_state())
        assert np.abs(rows[stop - 1] - wanted[0, -1]).max() < (1e-4 if dtype == "fp32" else 0.6)


def test_a_last_token_part_that_is_not_known_is_left_alone(tiny_artifact: Artifact) -> None:
    model = read_model(available_models(tiny_artifact("last"))["fp32"])
    for node in model.graph.node:
        if node.op_type == "GatherElements":
            node.op_type = "Gather"  # another exporter's way, as far as names go
    assert all_positions(model) is None


@pytest.mark.parametrize("dtype", RECIPES)
def test_stored_weights_are_what_the_source_gives(tiny_source: Path, tiny_artifact: Artifact, dtype: str) -> None:
    path, checkpoint = available_models(tiny_artifact("last"))[dtype], open_checkpoint(tiny_source)
    stored = read_stored(read_model(path), path.parent, checkpoint.spec)
    assert stored.missing == ()
    close = {"fp32": 0.0, "fp16": 1e-3, "q8": 0.02, "q4": 0.3, "q4f16": 0.3}[dtype]
    for name, shape in checkpoint.spec.source_tensors().items():
        source = checkpoint.rows(name, 0, shape[0])
        mine = stored.override(name, 0, shape[0])
        assert mine is not None and mine.shape == source.shape
        assert np.abs(mine - source).max() <= close * np.abs(source).max(), name
        middle = stored.override(name, shape[0] // 3, shape[0] // 2)
        np.testing.assert_array_equal(middle, mine[shape[0] // 3 : shape[0] // 2])
    for measure in measure_weights(stored, checkpoint):
        assert (measure.wrong, measure.worse or 0, measure.first) == (0, 0, None)


def test_weights_of_other_names_are_missing(tiny_source: Path, tiny_artifact: Artifact) -> None:
    path, checkpoint = available_models(tiny_artifact("last"))["q4"], open_checkpoint(tiny_source)
    model = read_model(path)
    name = "model.layers.0.conv.out_proj.weight"
    for tensor in model.graph.initializer:
        if tensor.name == f"{name}.scales":
            tensor.name = "elsewhere"
    stored = read_stored(model, path.parent, checkpoint.spec)
    assert stored.missing == (name,)
    assert stored.override(name, 0, 4) is None


def test_the_reference_writes_what_generate_writes(tiny_source: Path) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(tiny_source, dtype=torch.float32, attn_implementation="eager").eval()
    theirs.generation_config = GenerationConfig()
    prompts = [Prompt("a", None, (1, 20, 300, 41)), Prompt("b", None, (1,))]
    reference = load_reference(tiny_source, "memory")
    assert isinstance(reference, MemoryReference)
    for prompt, entry in zip(prompts, write(reference, prompts, 24), strict=True):
        ids = torch.tensor([prompt.tokens])
        plain = GenerationConfig(do_sample=False, max_new_tokens=24, pad_token_id=0)  # not the folder's own sampling
        wanted = theirs.generate(ids, attention_mask=torch.ones_like(ids), generation_config=plain)
        assert entry.answer == tuple(wanted[0, len(prompt.tokens) :].tolist())
        again, _ = expect(reference, [prompt], [entry.answer], None, cached=True)
        np.testing.assert_array_equal(entry.logits, again[0].logits)
        for mine, cached in zip(entry.trace.caches(20), again[0].trace.caches(20), strict=True):
            np.testing.assert_array_equal(mine, cached)


def test_the_first_difference_is_found_with_its_margin(plan: Plan) -> None:
    entry = plan.expected[0]
    given = list(entry.answer)
    given[3] = (given[3] + 1) % plan.reference.spec.vocab_size
    others = [e.answer for e in plan.expected[1:]]
    found = measure_greedy(plan.reference, plan.expected, [tuple(given), *others], 0.0, plan.tokenizer, True)
    parted = found[0].difference
    assert parted is not None and found[0].equal == 3
    assert (parted.step, parted.our_token, parted.reference_token) == (3, given[3], entry.answer[3])
    row = entry.logits[3]
    assert parted.gap == pytest.approx(row[entry.answer[3]] - row[given[3]], abs=1e-4)
    assert parted.margin == pytest.approx(float(np.sort(row)[-1] - np.sort(row)[-2]), abs=1e-4)
    assert parted.near_tie is False
    assert all(other.difference is None for other in found[1:])


def test_rows_are_padded_on_the_side_that_is_asked() -> None:
    ids, mask = padded([(5,), (6, 7, 8)], "LR")
    assert ids.tolist() == [[0, 0, 5], [6, 7, 8]]
    assert mask.tolist() == [[0, 0, 1], [1, 1, 1]]
    lengths = [len(row) for row in uneven_rows([Prompt("", None, tuple(range(12))), Prompt("", None, (3,))])]
    assert lengths == [3, 12, 8]


def test_a_long_prompt_is_cut_where_its_activations_would_not_fit() -> None:
    wanted = {"350M": 8192, "700M": 4096, "1.2B": 2048, "2.6B": 512}
    assert {size: at_once(parse_spec(family_config(size))) for size in wanted} == wanted


def steps_measure(caches: dict[str, list[float]], logits: list[float]) -> StepsMeasure:
    points = [StepPoint(0, i, i, LogitsMeasure(v, v, 1.0, 0.0, True, 0, 1.0)) for i, v in enumerate(logits)]
    series = [CacheSeries(n, i, "conv", tuple(v), (1.0,) * len(v), 1.0) for i, (n, v) in enumerate(caches.items())]
    return StepsMeasure(Form.SHIPPED, "source", tuple(points), tuple(series), None, None, None, None)


def test_the_earliest_step_wins_then_the_lowest_layer() -> None:
    def first(caches: dict[str, list[float]], logits: list[float]) -> tuple[int | None, str | None]:
        found = first_failure(CheckName.FILE, steps_measure(caches, logits), ["p"], 0.1, 0.1)
        assert found is not None
        return found.step, found.tensor

    assert first({"a": [0, 0, 9], "b": [0, 9, 9]}, [0, 0, 9]) == (1, "b")
    assert first({"a": [0, 9], "b": [0, 9]}, [0, 9]) == (1, "a")
    assert first({"a": [0, 0], "b": [0, 0]}, [0, 9]) == (1, "logits")
    assert first({"a": [float("nan"), 0], "b": [0, 0]}, [0, 0]) == (0, "a")
    assert first_failure(CheckName.FILE, steps_measure({"a": [0.0]}, [0.0]), ["p"], 0.1, 0.1) is None


@pytest.mark.parametrize("fault", ["no inputs", "no outputs", "no logits", "logits of 2 axes", "data elsewhere"])
def test_graphs_that_nothing_can_be_made_of_are_refused(
    tiny_artifact: Callable[[LogitsMode], Path], tmp_path: Path, fault: str
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(tiny_artifact("last"), folder)
    path = folder / "onnx" / "model_q4.onnx"
    model = open_graph(path, folder)
    graph = model.graph
    logits = next(value for value in graph.output if value.name == "logits")
    if fault == "no inputs":
        del next(node for node in graph.node if node.op_type == "MatMulNBits").input[1:]
    elif fault == "no outputs":
        del graph.node[0].output[:]
    elif fault == "no logits":
        logits.name = "other"
    elif fault == "logits of 2 axes":
        del logits.type.tensor_type.shape.dim[2]
    else:
        (folder / "onnx" / "model_q4.onnx_data").rename(folder / "onnx" / "elsewhere")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match=r"expected at least|no output logits of 3 axes|which is not there"):
        open_graph(path, folder)
