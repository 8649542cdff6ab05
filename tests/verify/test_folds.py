"""Files whose channels were scaled: proven, every wrong fold caught, and other exporters' files taken as they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import faults
from benchmarks.outliers import always, plant_channels
from lfm2export import pipeline
from lfm2export.artifact import available_models
from lfm2export.checkpoint import Checkpoint, open_checkpoint
from lfm2export.contract import MODEL_FILES
from lfm2export.equalized import Equalized, equalized
from lfm2export.pipeline import build
from lfm2export.recipes import Calibration, Options, Target
from lfm2export.verify.figures import CheckName, Verdict
from lfm2export.verify.file import Plan
from lfm2export.verify.folds import broken_fold, held_source
from lfm2export.verify.judge import judge_weights
from lfm2export.verify.run import Scope, make_plan, verify_artifact
from lfm2export.verify.source import find_source
from lfm2export.verify.stored import read_stored
from lfm2export.verify.weights import measure_weights
from test_faults import verified

GAIN = "model.layers.1.operator_norm.weight"
KERNEL = "model.layers.2.conv.conv.weight"
W3 = "model.layers.2.feed_forward.w3.weight"
W2 = "model.layers.2.feed_forward.w2.weight"
OUT_PROJ = "model.layers.2.conv.out_proj.weight"

QUANTIZED = ("q8", "q4", "q4f16")


@pytest.fixture(scope="module")
def source(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with 5 channels of each place fifty times as large."""
    return plant_channels(tiny_source, tmp_path_factory.mktemp("planted") / "source", always(50), channels=5)


@pytest.fixture(scope="module")
def checkpoint(source: Path) -> Checkpoint:
    return open_checkpoint(source)


@pytest.fixture(scope="module")
def artifact(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("planted") / "out"
    return build(str(source), dtypes=["fp32", *QUANTIZED], out=out).folder


@pytest.fixture(scope="module")
def planted_plan(artifact: Path, source: Path) -> Plan:
    scope = Scope(steps=4, quick=True)
    return make_plan(artifact, available_models(artifact), find_source(artifact, source), scope, threads=1)


def stored_of(folder: Path, dtype: str, checkpoint: Checkpoint):  # type: ignore[no-untyped-def]
    path = folder / "onnx" / MODEL_FILES[dtype]
    return read_stored(faults.onnx.load(str(path), load_external_data=False), path.parent, checkpoint.spec)


def test_every_file_is_proven_and_says_what_was_scaled(artifact: Path, source: Path) -> None:
    found = verify_artifact(artifact, reference=source, steps=4, quick=True, threads=1)
    assert found.passed
    count = equalized(open_checkpoint(source)).scaled
    assert count > 40
    recipe = json.loads((artifact / "build.json").read_text(encoding="utf-8"))["recipe"]
    for file in found.files:
        summary = next(check.summary for check in file.checks if check.name is CheckName.WEIGHTS)
        said = f"{count} channels scaled by powers of two"
        assert (said in summary) == (file.dtype in QUANTIZED)
        channels = recipe[file.dtype]["channels"]
        assert channels is None if file.dtype == "fp32" else channels["scaled"] == count


def test_float_files_hold_the_source_itself(artifact: Path, checkpoint: Checkpoint) -> None:
    for dtype, scaled in (("fp32", False), ("q4", True)):
        gain = stored_of(artifact, dtype, checkpoint).weights[GAIN].floats(0, 64)
        assert np.array_equal(gain, checkpoint.rows(GAIN, 0, 64)) != scaled


def unfolded_gain(checkpoint: Checkpoint) -> faults.Plant:
    """The readers of a norm are scaled; its gain is the source's."""

    def fault(p: faults.Patient) -> None:
        p.write(GAIN, checkpoint.rows(GAIN, 0, 64).astype(p.read(GAIN).dtype))

    return fault


def unscaled_kernel(checkpoint: Checkpoint) -> faults.Plant:
    """One channel of a kernel is the source's, where out_proj's column is scaled."""
    row = int(np.flatnonzero(equalized(checkpoint).row_scales[KERNEL] != 1)[0])

    def fault(p: faults.Patient) -> None:
        whole = checkpoint.rows(KERNEL, row, row + 1)[0, 0]
        if KERNEL in {tensor.name for tensor in p.graph.initializer}:
            values = p.read(KERNEL)
            values[row, 0] = whole
            p.write(KERNEL, values)
        else:
            values = p.read(f"{KERNEL}.transposed")
            values[..., row] = whole[:, None]
            p.write(f"{KERNEL}.transposed", values)

    return fault


def half_row(checkpoint: Checkpoint) -> faults.Plant:
    """A row of w3 is divided by 2 once more, and no column of w2 is doubled for it."""

    def fault(p: faults.Patient) -> None:
        names = {tensor.name for tensor in p.graph.initializer}
        stack = W3.replace("w3", "w1").removesuffix(".weight") + ".weight+w3"
        scales = next(n for n in (f"{W3}.scales", f"{stack}.scales", f"{stack}.channel_scales") if n in names)
        values = p.read(scales)
        values[7 if scales.startswith(W3) else 128 + 7] /= 2
        p.write(scales, values)

    return fault


def other_factor(factor: float) -> Callable[[Checkpoint], faults.Plant]:
    def of(_: Checkpoint) -> faults.Plant:
        def fault(p: faults.Patient) -> None:
            values = p.read(GAIN)
            values[3] *= values.dtype.type(factor)
            p.write(GAIN, values)

        return fault

    return of


FAULTS: dict[str, tuple[Callable[[Checkpoint], faults.Plant], str]] = {
    "a gain without its readers": (unfolded_gain, GAIN),
    "a kernel without its column": (unscaled_kernel, KERNEL),
    "a row of w3 without its column of w2": (half_row, "w3"),
    "a factor of 3": (other_factor(3), GAIN),
    "a factor of 4 in one place": (other_factor(4), GAIN),
}


@pytest.mark.parametrize("dtype", QUANTIZED)
@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_fold_is_a_wrong_weight(
    artifact: Path, checkpoint: Checkpoint, name: str, dtype: str, tmp_path: Path
) -> None:
    fault, tensor = FAULTS[name]
    shutil.copytree(artifact, tmp_path / "spoiled")
    path = faults.plant(tmp_path / "spoiled", dtype, fault(checkpoint))
    stored = read_stored(faults.onnx.load(str(path), load_external_data=False), path.parent, checkpoint.spec)
    held = held_source(stored, checkpoint)
    assert isinstance(held, Equalized)
    wrong = [one.initializer for one in measure_weights(stored, held) if one.wrong or one.worse]
    assert len(wrong) == 1 and tensor in wrong[0]


def test_the_check_fails_and_names_the_tensor(
    artifact: Path, planted_plan: Plan, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    found = verified(planted_plan, artifact, "q4", unfolded_gain(checkpoint), tmp_path / "spoiled")
    failed = next(check for check in found.checks if check.verdict is Verdict.FAILED)
    assert failed.name is CheckName.WEIGHTS and failed.failures[0].tensor == GAIN
    assert failed.failures[0].layer == 1


def test_a_file_whose_channels_are_the_source_s_is_taken_as_it_is(
    source: Path, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another exporter writes it, whatever build.json says of it."""
    monkeypatch.setattr(pipeline, "_equalized", lambda checkpoint, *_: checkpoint)
    out = build(str(source), dtypes=["q8", "q4"], out=tmp_path / "out").folder
    manifest = json.loads((out / "build.json").read_text(encoding="utf-8"))
    for dtype in ("q8", "q4"):
        manifest["recipe"][dtype]["channels"] = {"scaled": 99, "of": 100, "largest_factor": 64}
    (out / "build.json").write_text(json.dumps(manifest), encoding="utf-8")
    for dtype in ("q8", "q4"):
        stored = stored_of(out, dtype, checkpoint)
        assert held_source(stored, checkpoint) is checkpoint
        assert not [one for one in measure_weights(stored, checkpoint) if one.wrong or one.worse]


def test_quantized_rows_tell_where_no_float_weight_does(
    artifact: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a model of which only rows of w3 are scaled."""
    only = SimpleNamespace(rows=equalized(checkpoint).rows, row_scales={W3: equalized(checkpoint).row_scales[W3]})
    monkeypatch.setattr("lfm2export.verify.folds.equalized", lambda *_: only)
    for dtype in QUANTIZED:
        assert held_source(stored_of(artifact, dtype, checkpoint), checkpoint) is only
    assert held_source(stored_of(artifact, "fp32", checkpoint), checkpoint) is checkpoint


def test_files_calibrated_for_a_target_are_proven_too(source: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    options = Options(calibration=Calibration(tokens=2048), target=Target(7.8, "bits per weight"))
    out = build(str(source), dtypes=["q4"], options=options, out=tmp_path / "out").folder
    stored = stored_of(out, "q4", checkpoint)
    held = held_source(stored, checkpoint)
    assert isinstance(held, Equalized)
    measured = measure_weights(stored, held)
    assert any(one.moved for one in measured) and not any(one.wrong or one.worse for one in measured)


def test_scales_that_cancel_are_no_fault(checkpoint: Checkpoint) -> None:
    balanced = equalized(checkpoint)
    assert broken_fold(balanced.row_scales, balanced.column_scales, checkpoint.spec) is None
    assert broken_fold({}, {}, checkpoint.spec) is None


BROKEN: dict[str, Callable[[dict[str, np.ndarray], dict[str, np.ndarray]], str]] = {}


def broken(change: Callable[[dict[str, np.ndarray], dict[str, np.ndarray]], str]) -> None:
    BROKEN[change.__name__] = change


@broken
def a_reader_is_left_out(rows: dict[str, np.ndarray], columns: dict[str, np.ndarray]) -> str:
    name = "model.layers.1.self_attn.k_proj.weight"
    del columns[name]
    return name


@broken
def a_row_is_left_out(rows: dict[str, np.ndarray], columns: dict[str, np.ndarray]) -> str:
    del rows[W3]
    return W2


@broken
def one_factor_is_doubled(rows: dict[str, np.ndarray], columns: dict[str, np.ndarray]) -> str:
    rows[KERNEL] = rows[KERNEL] * np.where(np.arange(64) == 9, 2, 1)
    return OUT_PROJ


@broken
def a_factor_is_no_power_of_two(rows: dict[str, np.ndarray], columns: dict[str, np.ndarray]) -> str:
    three = np.where(np.arange(64) == 9, np.float32(4) / 3, np.float32(1))
    rows[GAIN] = rows[GAIN] * three
    for name in "qkv":
        reader = f"model.layers.1.self_attn.{name}_proj.weight"
        columns[reader] = columns[reader] / three
    return GAIN


@broken
def the_state_is_scaled(rows: dict[str, np.ndarray], columns: dict[str, np.ndarray]) -> str:
    name = "model.layers.2.conv.in_proj.weight"
    rows[name] = np.where(np.arange(192) == 130, 2, 1).astype(np.float32)
    return name


@broken
def values_are_scaled(rows: dict[str, np.ndarray], columns: dict[str, np.ndarray]) -> str:
    name = "model.layers.1.self_attn.v_proj.weight"
    rows[name] = np.full(32, 2, np.float32)
    return name


@pytest.mark.parametrize("name", BROKEN)
def test_scales_that_do_not_cancel_are_named(checkpoint: Checkpoint, name: str) -> None:
    balanced = equalized(checkpoint)
    rows, columns = dict(balanced.row_scales), dict(balanced.column_scales)
    wanted = BROKEN[name](rows, columns)
    assert broken_fold(rows, columns, checkpoint.spec) == wanted
    check = judge_weights((), (), 0.0, broken=wanted)
    assert check.verdict is Verdict.FAILED and check.failures[0].tensor == wanted
