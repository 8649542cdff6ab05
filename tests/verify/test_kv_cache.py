"""Planted faults of int8 keys and values: each is caught, and the first failure says where."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import faults
from lfm2export.artifact import available_models
from lfm2export.progress import silent
from lfm2export.verify.figures import CheckName, Verdict
from lfm2export.verify.file import FileChecks, Plan
from lfm2export.verify.kv_cache import has_int8_caches
from lfm2export.verify.results import Check, FileResult
from lfm2export.verify.run import Scope, make_plan
from lfm2export.verify.source import find_source
from lfm2export.verify.variants import exact_copy, open_graph

KEY, VALUE = "past_key_values.1.key.scale", "past_key_values.1.value.scale"

Edit = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def int8_plan(int8_caches: Path, tiny_source: Path) -> Plan:
    source = find_source(int8_caches, tiny_source)
    return make_plan(int8_caches, available_models(int8_caches), source, Scope(steps=6, quick=True), threads=1)


def verified(plan: Plan, dtype: str, fault: faults.Plant, to: Path) -> FileResult:
    shutil.copytree(plan.folder, to)
    return FileChecks(replace(plan, folder=to), dtype, faults.plant(to, dtype, fault), silent).run()


def check(result: FileResult, name: CheckName = CheckName.CACHES) -> Check:
    return next(found for found in result.checks if found.name is name)


def scale_of(patient: faults.Patient, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in patient.graph.initializer if tensor.name == name)


def edited(name: str, edit: Edit) -> faults.Plant:
    def plant(patient: faults.Patient) -> None:
        tensor = scale_of(patient, name)
        values = edit(numpy_helper.to_array(tensor).copy())
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))

    return plant


def exchanged(one: str, other: str) -> faults.Plant:
    def plant(patient: faults.Patient) -> None:
        first, second = (scale_of(patient, name) for name in (one, other))
        first.name, second.name = other, one

    return plant


def branch(patient: faults.Patient, name: str, layer: int) -> onnx.GraphProto:
    choices = [node for node in patient.graph.node if node.op_type == "If"]
    attributes = choices[{1: 0, 3: 1}[layer]].attribute
    return next(attribute.g for attribute in attributes if attribute.name == name)


def zeroed(values: np.ndarray) -> np.ndarray:
    values[0, 1, 0, 3] = 0
    return values


def other_scales_in_one_branch(name: str) -> faults.Plant:
    """The step's operator reads the scales of the keys for its values; or the prompt's branch does."""

    def plant(patient: faults.Patient) -> None:
        if name == "else_branch":
            (node,) = branch(patient, name, 1).node
            node.input[13] = node.input[12]
            return
        divisions = [node for node in branch(patient, name, 1).node if node.op_type == "Div"]
        divisions[1].input[1] = divisions[0].input[1]

    return plant


def rounded_down(patient: faults.Patient) -> None:
    for node in branch(patient, "then_branch", 3).node:
        if node.op_type == "Round":
            node.op_type = "Floor"


def queries_as_they_are(patient: faults.Patient) -> None:
    """The prompt's branch forgets the scales of the keys."""
    nodes = branch(patient, "then_branch", 1).node
    first = next(node for node in nodes if node.op_type == "Mul")
    operator = next(node for node in nodes if node.op_type == "GroupQueryAttention")
    operator.input[0] = first.input[0]


SCALE = "from the scale that its text gives"
CODES = "are not the nearest to what was computed"
RESULT = "attention over the codes is off by"

#: A fault, and what the check's lines say of it.
CASES: dict[str, tuple[faults.Plant, str]] = {
    "scale off by 2": (edited(KEY, lambda values: values * 2), SCALE),
    "scale of one channel off by 1.1": (edited(VALUE, lambda v: v * np.where(np.arange(16) == 5, 1.1, 1)), SCALE),
    "half the scale": (edited(VALUE, lambda values: values / 2), SCALE),
    "scales of keys and values exchanged": (exchanged(KEY, VALUE), SCALE),
    "scales of another layer": (exchanged(VALUE, VALUE.replace(".1.", ".3.")), SCALE),
    "scales shifted by a channel": (edited(KEY, lambda values: np.roll(values, 1, axis=3)), SCALE),
    "scales of heads exchanged": (edited(VALUE, lambda values: values[:, ::-1]), SCALE),
    "a scale of zero": (edited(KEY, zeroed), SCALE),
    "keys' scales for values in a step": (other_scales_in_one_branch("else_branch"), CODES),
    "keys' scales for values in a prompt": (other_scales_in_one_branch("then_branch"), CODES),
    "rounded down": (rounded_down, CODES),
    "queries without the keys' scales": (queries_as_they_are, RESULT),
}


@pytest.mark.parametrize("name", CASES)
def test_a_fault_is_caught(int8_plan: Plan, tmp_path: Path, name: str) -> None:
    fault, said = CASES[name]
    result = verified(int8_plan, "q4", fault, tmp_path / "spoiled")
    messages = [failure.message for failure in check(result).failures]
    assert any(said in message for message in messages), messages
    assert result.verdict is Verdict.FAILED
    if said == SCALE:  # the graph without the rounding of caches is PyTorch's on the same weights all the same
        assert check(result, CheckName.ARITHMETIC).verdict is Verdict.PASSED
        failure = next(failure for failure in check(result).failures if SCALE in failure.message)
        assert failure.layer in (1, 3) and failure.tensor is not None and failure.tensor.startswith("present.")


@pytest.mark.parametrize("dtype", ["q8", "q4"])
def test_the_unspoiled_copy_passes(int8_plan: Plan, tmp_path: Path, dtype: str) -> None:
    result = verified(int8_plan, dtype, lambda patient: None, tmp_path / "copy")
    assert result.verdict is Verdict.PASSED, result.failures
    found = result.caches
    assert found is not None and found.codes > 10_000 and found.wrong == 0
    assert found.scales_off is not None and found.scales_off < 1e-4
    assert found.share is not None and 1e-3 < found.share < 0.05
    assert check(result, CheckName.PADDING).verdict is Verdict.PASSED


def test_the_exact_copy_has_float_caches(int8_plan: Plan) -> None:
    graph = open_graph(available_models(int8_plan.folder)["q4"], int8_plan.folder)
    copy = exact_copy(graph)
    types = {value.type.tensor_type.elem_type for value in copy.graph.input if value.name.startswith("past_")}
    assert types == {onnx.TensorProto.FLOAT}
    assert not has_int8_caches(copy) and has_int8_caches(graph)
    operators = [node for node in copy.graph.node if node.op_type == "GroupQueryAttention"]
    assert len(operators) == 2 and "If" not in {node.op_type for node in copy.graph.node}


def test_a_form_that_is_not_known_is_not_judged(int8_plan: Plan, tmp_path: Path) -> None:
    """Nor is it taken for good: what is not measured is said."""

    def wrap(patient: faults.Patient) -> None:
        graph = branch(patient, "else_branch", 1)
        name = graph.output[0].name
        graph.node[0].output[0] = "before"
        graph.node.append(helper.make_node("Identity", ["before"], [name]))

    result = verified(int8_plan, "q4", wrap, tmp_path / "other")
    assert check(result).verdict is Verdict.NOT_MEASURED
