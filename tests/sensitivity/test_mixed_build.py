"""`build` with a target: the file fits, holds what build.json says, and passes verification; else it is refused."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner, Result

from lfm2export.cli import main
from lfm2export.matrices import matrices
from lfm2export.pipeline import build
from lfm2export.recipes import Calibration, Options, Target
from lfm2export.spec import parse_spec, read_config
from lfm2export.verify.run import verify_artifact
from lfm2export.verify.stored import read_stored
from lfm2export.weights import BlockFormat
from tiny import write_tiny

#: Between the least and the greatest for the checkpoint below.
MEGABYTES = 0.46
OPTIONS = Options(target=Target(MEGABYTES, "MB"), quantizer="round")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("mixed") / "source", hidden_size=128, intermediate_size=256)


@pytest.fixture(scope="module")
def artifact(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """q4 and q4f16 of one target, and q8, which has none."""
    out = tmp_path_factory.mktemp("mixed") / "out"
    return build(str(source), dtypes=["q8", "q4", "q4f16"], options=OPTIONS, out=out).folder


def held(folder: Path, name: str) -> dict[str, BlockFormat]:
    """The format of every matrix in blocks of a file."""
    spec = parse_spec(read_config(folder))
    model = onnx.load(folder / "onnx" / name, load_external_data=False)
    stored = read_stored(model, folder / "onnx", spec).weights
    return {key.removesuffix(".codes"): one.format for key, one in stored.items() if one.format is not None}


def said(manifest: dict[str, Any]) -> dict[str, BlockFormat]:
    """The same as build.json has it."""
    rows = manifest["formats"]["matrices"]
    return {row["name"]: BlockFormat(row["bits"], row["block_size"], row["symmetric"]) for row in rows}


def test_files_fit_and_hold_what_the_manifest_says(artifact: Path) -> None:
    manifest = json.loads((artifact / "build.json").read_text())
    for dtype in ("q4", "q4f16"):
        assert manifest["models"][dtype]["bytes"] <= MEGABYTES * 1e6
        assert manifest["recipe"][dtype]["body"] == manifest["recipe"][dtype]["table"] == "by matrix"
    assert manifest["models"]["q4"]["bytes"] > 0.95 * MEGABYTES * 1e6
    formats = said(manifest)
    assert held(artifact, "model_q4.onnx") == held(artifact, "model_q4f16.onnx") == formats
    assert list(formats) == [matrix.name for matrix in matrices(parse_spec(read_config(artifact)))]
    assert {form.bits for form in formats.values()} == {4, 8} and len(set(formats.values())) > 2
    formats = held(artifact, "model_quantized.onnx").values()  # of q8 a target says nothing
    assert {(format.bits, format.quantizer) for format in formats} == {(8, "channel")}
    assert not (artifact / ".calibration").exists()


def test_the_mixed_files_pass_verification(artifact: Path, source: Path) -> None:
    found = verify_artifact(artifact, reference=source, dtypes=("q4", "q4f16"), quick=True)
    assert found.passed, [failure.message for file in found.files for failure in file.failures]


def digests(folder: Path) -> dict[str, str]:
    return {p.name: sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_choice_does_not_depend_on_the_number_of_threads(source: Path, tmp_path: Path) -> None:
    one, three = (
        build(str(source), options=OPTIONS, out=tmp_path / str(threads) / "same", threads=threads).folder
        for threads in (1, 3)
    )
    assert digests(one) == digests(three)


def test_calibrated_matrices_have_the_chosen_formats(source: Path, tmp_path: Path) -> None:
    options = Options(target=OPTIONS.target, quantizer="round", calibration=Calibration(tokens=2048))
    folder = build(str(source), options=options, out=tmp_path / "out").folder
    manifest = json.loads((folder / "build.json").read_text())
    assert held(folder, "model_q4.onnx") == said(manifest)
    assert len(set(said(manifest).values())) > 2
    assert manifest["recipe"]["q4"]["calibration"] is not None
    assert manifest["models"]["q4"]["bytes"] <= MEGABYTES * 1e6
    assert verify_artifact(folder, reference=source, dtypes=("q4",), quick=True).passed


def refused(source: Path, out: Path, *arguments: str) -> str:
    result: Result = CliRunner().invoke(main, ["build", str(source), "-o", str(out), "--no-verify", *arguments])
    assert result.exit_code == 2 and not out.exists()
    return result.output


def test_what_cannot_be_is_refused(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "both given" in refused(source, out, "--target-bpw", "5", "--target-size", "1")
    assert "the target is for q4 and q4f16, and only q8 is built" in refused(
        source, out, "--target-size", "1", "--dtype", "q8"
    )
    message = refused(source, out, "--target-bpw", "1", "--quantizer", "round")
    assert "the target of 1 bits per weight is less than any choice takes: possible are about " in message
    assert "add --calibrate" in refused(source, out, "--calibration-text", "self")


def test_the_text_can_be_a_file(source: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The boats that go with the river carry corn, coal and letters. " * 200)
    arguments = ["--target-size", str(MEGABYTES), "--calibration-text", str(text), "--quantizer", "round"]
    command = ["build", str(source), "-o", str(tmp_path / "out"), "--no-verify", "-q", *arguments]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "formats by matrix: " in result.output and "(text.txt)" in result.output
