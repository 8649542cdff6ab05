"""The goldens hold for what is built here; what counts as a change, and what does not."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, parser

from golden import record
from golden.__main__ import compare_all, tell
from golden.structure import structure
from golden.values import TOLERANCES, differences, highest
from lfm2export.recipes import RECIPES

GRAPH = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[2, 3] x) => (float[3, 2] y)
<int64[2] shape = {3, 2}, float[3] w = {1.0, 2.0, 3.0}>
{
    scaled = Mul(x, w)
    y = Reshape<allowzero = 0>(scaled, shape)
}
"""


def test_goldens_hold(shipped_artifact: Path) -> None:
    problems, _ = compare_all(shipped_artifact)
    assert not problems, "\n".join([*problems, f"If the change is intended: {record.REFRESH}"])


def test_every_golden_says_what_it_was_made_of() -> None:
    for name in (record.REFERENCE, *RECIPES):
        found = record.read(name)
        assert found is not None and set(found["versions"]) == set(record.LIBRARIES)
        assert len(found["source"]["model.safetensors"]) == 64
        assert name in TOLERANCES


def test_a_failing_golden_prints_how_to_refresh(capsys: pytest.CaptureFixture[str]) -> None:
    stored, rows = record.read("q4"), {}
    assert stored is not None
    now = copy.deepcopy(stored)
    now["graph"]["op_counts"]["Add"] += 1
    now["files"]["model_q4.onnx"]["sha256"] = "0"
    problems = record.compare("q4", stored, now, rows)
    assert any("Add nodes" in problem for problem in problems)
    assert tell(problems, []) == 1
    assert record.REFRESH in capsys.readouterr().err
    notes = record.notes("q4", stored, now)
    assert notes == ["q4: model_q4.onnx has other bytes than the golden's"]
    assert tell([], notes) == 0 and tell([], notes, strict=True) == 1
    assert record.compare("q4", None, now, rows)[0].startswith("q4: golden/q4.json is missing")


def digest(model: onnx.ModelProto, folder: Path) -> str:
    onnx.save(model, folder / "model.onnx")
    return str(structure(folder / "model.onnx")["digest"])


def test_digest_ignores_inner_names_alone(tmp_path: Path) -> None:
    model = parser.parse_model(GRAPH)
    renamed = copy.deepcopy(model)
    renamed.graph.node[0].output[0] = renamed.graph.node[1].input[0] = "other"
    assert digest(model, tmp_path) == digest(renamed, tmp_path)
    seen = {digest(model, tmp_path)}
    for change in ("wiring", "attribute", "constant", "type", "operator", "input name"):
        other = copy.deepcopy(model)
        if change == "wiring":
            other.graph.node[0].input[:] = ["w", "x"]
        elif change == "attribute":
            other.graph.node[1].attribute[0].i = 1
        elif change == "constant":
            other.graph.initializer[0].CopyFrom(helper.make_tensor("shape", onnx.TensorProto.INT64, [2], [2, 3]))
        elif change == "type":
            other.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 6
        elif change == "operator":
            other.graph.node[0].op_type = "Add"
        else:
            other.graph.input[0].name = other.graph.node[0].input[0] = "z"
        seen.add(digest(other, tmp_path))
    assert len(seen) == 7


def test_logits_within_tolerance_and_near_ties_are_no_difference() -> None:
    rows = np.random.default_rng(1).normal(size=(3, 40)).astype(np.float32)
    rows[:, 7] = 9
    rows[1, 8] = 8.95
    stored = {"p": highest(rows)}
    assert not differences("q4", stored, {"p": rows})
    tied = rows.copy()
    tied[1, 7], tied[1, 8] = 8.95, 9.0
    assert not differences("q4", stored, {"p": tied})
    assert differences("fp32", stored, {"p": tied})[0].startswith("fp32: prompt 'p', step 1: token")
    wrong = rows.copy()
    wrong[2, 30] = 20
    assert "token 30 comes first, in the golden 7" in differences("q4", stored, {"p": wrong})[0]
    wrong[0, 0] = np.nan
    assert "step 0: logits are not finite" in differences("q4", stored, {"p": wrong})[0]
    assert "other steps" in differences("q4", stored, {})[0]
