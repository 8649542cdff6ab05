"""An artifact in the hub's cache, where every file is a link into ../../blobs: every command works on it as it lies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from lfm2export.cli import main
from lfm2export.contract import LogitsMode
from lfm2export.errors import ArtifactError
from lfm2export.runtime import OnnxModel
from snapshots import blobs, snapshot

IDS = np.array([[3, 141, 59, 26]])


@pytest.fixture(scope="module")
def artifact(tiny_artifact: Callable[[LogitsMode], Path]) -> Path:
    return tiny_artifact("last")


@pytest.fixture(scope="module")
def linked(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return snapshot(artifact, tmp_path_factory.mktemp("hub") / "models--a--b")


@pytest.mark.parametrize("dtype", ["fp32", "q4"])
def test_the_runtime_opens_it_and_altered_graphs_of_it(artifact: Path, linked: Path, dtype: str) -> None:
    altered = (linked / "onnx" / ("model.onnx" if dtype == "fp32" else "model_q4.onnx")).read_bytes()
    models = [
        OnnxModel(artifact, dtype, threads=1),
        OnnxModel(linked, dtype, threads=1),
        OnnxModel(linked, dtype, graph=altered, threads=1),
    ]
    plain, *others = (model.step(IDS, model.new_state())[0] for model in models)
    assert all(np.array_equal(other, plain) for other in others)


@pytest.mark.parametrize(
    "command",
    [
        ["inspect"],
        ["generate", "-p", "hello", "--greedy", "--max-new-tokens", "4", "--dtype", "q4"],
        ["bench", "--dtype", "q4", "--context", "8", "--repeats", "1", "-q"],
        ["check-consumers", "--dtype", "fp32", "--consumer", "onnxruntime"],
    ],
)
def test_commands_read_it(linked: Path, command: list[str]) -> None:
    before = blobs(linked)
    ran = CliRunner().invoke(main, [command[0], str(linked), *command[1:]])
    assert ran.exit_code == 0, ran.output
    assert blobs(linked) == before


def test_verify_and_report_replace_links_and_leave_what_they_led_to(
    artifact: Path, tiny_source: Path, tmp_path: Path
) -> None:
    folder = snapshot(artifact, tmp_path / "models--a--b")
    before = blobs(folder)
    for command in (["verify", "--reference", str(tiny_source), "--quick", "-q"], ["report"]):
        ran = CliRunner().invoke(main, [command[0], str(folder), *command[1:]])
        assert ran.exit_code == 0, ran.output
    assert blobs(folder) == before
    (folder / "consumers.json").write_text('{"folder": "out", "results": []}')
    again = snapshot(folder, tmp_path / "models--c--d")  # a repository with a report in it
    before = blobs(again)
    for command in (["check-consumers", "--dtype", "fp32", "--consumer", "onnxruntime"], ["report"]):
        ran = CliRunner().invoke(main, [command[0], str(again), *command[1:]])
        assert ran.exit_code == 0, ran.output
    assert blobs(again) == before
    written = ("parity.json", "parity.md", "parity.html", "consumers.json", "README.md")
    assert not [name for name in written if (again / name).is_symlink()]


def test_a_link_out_of_the_cache_is_refused(artifact: Path, tmp_path: Path) -> None:
    folder = snapshot(artifact, tmp_path / "models--a--b")
    secret = tmp_path / "secret"
    data = folder / "onnx" / "model_q4.onnx_data"
    secret.write_bytes(data.read_bytes())
    data.unlink()
    data.symlink_to(secret)
    with pytest.raises(ArtifactError, match=r"is a link to .*, outside"):
        OnnxModel(folder, "q4")
    data.unlink()
    with pytest.raises(ArtifactError, match=r"needs the data file model_q4\.onnx_data, which is not there"):
        OnnxModel(folder, "q4")


def test_links_inside_the_folder_are_followed(artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "onnx").mkdir(parents=True)
    (folder / "data").mkdir()
    (folder / "config.json").write_bytes((artifact / "config.json").read_bytes())
    for name in ("model_q4.onnx", "model_q4.onnx_data"):
        (folder / "data" / name).write_bytes((artifact / "onnx" / name).read_bytes())
        (folder / "onnx" / name).symlink_to(Path("..") / "data" / name)
    expected, got = (OnnxModel(place, "q4", threads=1) for place in (artifact, folder))
    assert np.array_equal(*(model.step(IDS, model.new_state())[0] for model in (expected, got)))
