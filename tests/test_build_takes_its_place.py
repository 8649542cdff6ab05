"""A new artifact is verified before it takes the place of what was there, and only one command works in a folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import lfm2export.consumers
import lfm2export.package
import lfm2export.verify.run
from lfm2export.cli import main
from lfm2export.consumers.result import ConsumerReport, ConsumerResult
from lfm2export.errors import OutputError
from lfm2export.inspection import inspect_artifact
from lfm2export.pipeline import BuildReport, build
from lfm2export.verify.document import read_parity
from staged import names
from test_locking import held


@pytest.fixture(scope="module")
def artifact(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verified q4 of the tiny checkpoint; copy it before changing it."""
    out = tmp_path_factory.mktemp("verified") / "out"
    result = run("build", tiny_source, "-o", out, "--quiet")
    assert result.exit_code == 0, result.output
    return out


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_good_artifact_has_its_report_and_nothing_of_where_it_was_made(artifact: Path) -> None:
    assert names(artifact.parent) == ["out"]
    found = read_parity(artifact)
    assert found.passed and found.folder == "out"
    assert {"parity.json", "parity.md", "parity.html"} < set(names(artifact))
    assert "| `q4`" in (artifact / "README.md").read_text().split("parity:begin")[1]
    assert inspect_artifact(artifact).good
    for path in artifact.rglob("*"):
        assert not path.is_file() or b"lfm2export.partial" not in path.read_bytes()


@pytest.fixture
def spoiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds whose weights are not the checkpoint's."""
    write_package = lfm2export.package.write_package

    def spoil(folder: Path, *arguments: Any, **named: Any) -> None:
        write_package(folder, *arguments, **named)
        [data] = (folder / "onnx").glob("*.onnx_data")
        with data.open("r+b") as file:
            file.seek(data.stat().st_size // 2)
            file.write(b"\x5a" * 64)

    monkeypatch.setattr(lfm2export.package, "write_package", spoil)


@pytest.mark.usefixtures("spoiled")
@pytest.mark.parametrize("existing", [False, True])
def test_an_artifact_that_fails_its_check_is_kept_beside_its_place(
    existing: bool, artifact: Path, tiny_source: Path, tmp_path: Path
) -> None:
    out, failed = tmp_path / "out", tmp_path / "out.failed"
    if existing:
        shutil.copytree(artifact, out)
    before = digests(out)
    result = run("build", tiny_source, "-o", out, "--force", "--quiet")
    assert result.exit_code == 1, result.output
    last = result.stdout.splitlines()[-1]
    assert last == f"parity failed: the new artifact is kept as {failed}, and its place is as it was; see " + str(
        failed / "parity.html"
    )
    assert out.exists() == existing and digests(out) == before
    assert names(tmp_path) == (["out", "out.failed"] if existing else ["out.failed"])
    found = read_parity(failed)
    assert not found.passed and found.folder == "out"
    assert "Parity FAILED for q4" in (failed / "README.md").read_text().split("parity:begin")[1]


def test_without_verification_nothing_is_held_back(spoiled: None, tiny_source: Path, tmp_path: Path) -> None:
    report = build(str(tiny_source), out=tmp_path / "out")
    assert report.passed is None and report.folder == tmp_path / "out" and names(tmp_path) == ["out"]


def test_a_check_that_raises_leaves_nothing(artifact: Path, tiny_source: Path, tmp_path: Path) -> None:
    shutil.copytree(artifact, tmp_path / "out")
    before = digests(tmp_path)

    def check(folder: Path, built: BuildReport) -> bool:
        assert folder != built.folder == tmp_path / "out"
        assert (folder / "build.json").is_file()
        raise OutputError(f"{folder}/parity.json cannot be written")

    with pytest.raises(OutputError) as caught:
        build(str(tiny_source), out=tmp_path / "out", force=True, check=check)
    assert str(caught.value) == f"{tmp_path}/out/parity.json cannot be written"
    assert names(tmp_path) == ["out"] and digests(tmp_path) == before


def test_force_names_what_it_would_delete_and_an_edited_card(artifact: Path, tiny_source: Path, tmp_path: Path) -> None:
    out, foreign = tmp_path / "out", tmp_path / "not-an-artifact"
    shutil.copytree(artifact, out)
    (out / "README.md").write_text("My own words.\n")
    (foreign / "onnx").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "notes.txt", "onnx/model.onnx"):
        (foreign / name).write_text("{}")
    before = digests(foreign)
    refused = run("build", tiny_source, "-o", foreign, "--force", "--quiet")
    assert refused.exit_code == 2 and len(refused.output.splitlines()) == 1
    assert "(config.json, model.safetensors, notes.txt, onnx/)" in refused.output
    assert digests(foreign) == before and names(tmp_path) == ["not-an-artifact", "out"]
    replaced = run("build", tiny_source, "-o", out, "--force", "--quiet", "--no-verify")
    assert replaced.exit_code == 0
    assert "replaced although edited since it was built: README.md" in replaced.stderr.splitlines()


BLOCKED = """
import sys, time
from pathlib import Path
from lfm2export.pipeline import build
def check(folder, built):
    (folder / "parity.json").write_text("half")
    print("checking", flush=True)
    time.sleep(600)
build(sys.argv[1], out=Path(sys.argv[2]), force=True, check=check)
"""


@pytest.mark.parametrize("existing", [False, True])
def test_while_a_build_runs_others_are_refused_and_its_kill_changes_nothing(
    existing: bool, artifact: Path, tiny_source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    if existing:
        shutil.copytree(artifact, out)
    before = digests(out)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", BLOCKED, str(tiny_source), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None and child.stdout.readline() == "checking\n"
        commands = [("build", tiny_source, "-o", out, "--force", "--quiet")]
        commands += [("verify", out), ("report", out), ("check-consumers", out)] if existing else []
        for arguments in commands:
            result = run(*arguments)
            assert result.exit_code == 2 and len(result.output.splitlines()) == 1, result.output
            assert "is running" in result.output or "is in use by another command" in result.output
        assert child.poll() is None
        child.send_signal(signal.SIGKILL)
    assert digests(out) == before
    assert names(tmp_path) == [".out.lfm2export.partial", *(["out"] if existing else [])]
    assert run("build", tiny_source, "-o", out, "--force", "--quiet", "--no-verify").exit_code == 0
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("command", [["verify"], ["report"], ["check-consumers"], ["build", "--force", "-o"]])
def test_a_folder_in_use_is_refused_in_one_line(command: list[str], artifact: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(artifact, out)
    before = digests(tmp_path)
    with held(out):
        result = run(*command, out)
        assert result.exit_code == 2
        assert [line for line in result.output.splitlines() if "in use by another command" in line] == [
            result.output.splitlines()[-1]
        ]
    assert digests(tmp_path) == before and names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("command", "module", "work"),
    [
        ("verify", lfm2export.verify.run, "verify_artifact"),
        ("check-consumers", lfm2export.consumers, "run_check_consumers"),
    ],
)
def test_a_command_holds_the_folder_while_it_works(
    command: str, module: Any, work: str, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(artifact, out)
    others: list[subprocess.CompletedProcess[str]] = []

    def meanwhile(folder: Path, **options: Any) -> Any:
        other = [sys.executable, "-P", "-m", "lfm2export", "report", str(out)]
        others.append(subprocess.run(other, capture_output=True, text=True))
        return read_parity(folder) if command == "verify" else True

    monkeypatch.setattr(module, work, meanwhile)
    assert run(command, out).exit_code == 0
    [other] = others
    assert other.returncode == 2 and "in use by another command" in other.stderr
    assert subprocess.run(other.args, capture_output=True).returncode == 0


def test_what_verify_writes_is_whole_whenever_it_is_stopped(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file is replaced by one that is complete: at no rename is there a file that cannot be read."""
    out = tmp_path / "out"
    shutil.copytree(artifact, out)
    before = digests(out)
    replace: Callable[[Path, Path], Path] = Path.replace

    def stop(path: Path, target: Path) -> Path:
        if target.name == "parity.html":
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", stop)
    assert run("report", out).exit_code == 130
    assert digests(out) == before  # rendering again gives the same bytes, and no partial file stays


def test_a_report_in_a_snapshot_leaves_the_blobs_alone(artifact: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    for number, path in enumerate(sorted(path for path in artifact.rglob("*") if path.is_file())):
        shutil.copy(path, blobs / str(number))
        place = snapshot / path.relative_to(artifact)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(os.path.relpath(blobs / str(number), place.parent))
    (snapshot / "parity.md").unlink()
    before = digests(blobs)
    assert run("report", snapshot).exit_code == 0
    assert digests(blobs) == before
    assert not any((snapshot / name).is_symlink() for name in ("README.md", "parity.json", "parity.md", "parity.html"))
    assert (snapshot / "config.json").is_symlink()


def test_consumers_json_tells_nothing_of_this_machine(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / 'größe "1"' / "out"
    shutil.copytree(artifact, out)
    place = Path(lfm2export.consumers.__file__).parent / "setup.sh"
    reason = f"run {place}, for {out}/onnx/model.onnx and {Path.home()}/x are not there"
    results = (ConsumerResult.not_run("node", "q4", "cpu", reason),)
    monkeypatch.setattr(
        lfm2export.consumers,
        "check_consumers",
        lambda folder, **options: ConsumerReport(folder.resolve().name, results),
    )
    shown: list[str] = []
    lfm2export.consumers.run_check_consumers(out, as_json=True, show=shown.append)
    text = (out / "consumers.json").read_text()
    assert text == shown[0] + "\n"
    found = json.loads(text)
    assert found["folder"] == "out"
    assert found["results"][0]["reason"] == (
        "run lfm2export/consumers/setup.sh, for out/onnx/model.onnx and ~/x are not there"
    )
    assert str(tmp_path) not in text
