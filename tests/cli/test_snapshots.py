"""What every command prints, on stdout and on stderr, held by snapshots; see snapshots.py for what they leave out."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from command_line import Ran, run
from kept_text import Snapshots
from lfm2export import synth
from lfm2export.cli import main
from lfm2export.consumers import card_loop, locate
from tiny import write_tiny

TOOLS = '[{"name": "get_time", "description": "The time in a city", "parameters": {"type": "object"}}]'


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a tiny checkpoint in `tiny`."""
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "tiny")
    return tmp_path


@pytest.fixture
def own(built: tuple[Path, Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the built folder, for commands that write into it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(built[0], tmp_path / "artifact")
    return tmp_path / "artifact"


@pytest.mark.parametrize("name", ["", *main.commands])
def test_help(snapshots: Snapshots, name: str) -> None:
    snapshots.check(f"help-{name}" if name else "help", run(*name.split(), "--help"))


def test_version_and_bad_usage(snapshots: Snapshots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = (
        ["--version"],
        ["biuld"],
        ["build", "--dtype", "q9"],
        ["build", "--no-such-option"],
        ["verify"],
        ["inspect", "a", "b"],
        ["generate", "x", "--max-new-tokens", "0"],
        ["build", "--calibration-tokens", "2000"],
        ["build", "--target-bpw", "5", "--target-size", "5"],
        ["build", "nowhere/at/all"],
        ["generate", "nowhere", "-p", "hi"],
        ["generate", "owner/SOME-ONNX", "-p", "hi"],
        ["inspect", "owner/SOME-ONNX"],
    )
    snapshots.check("usage", *(run(*words) for words in arguments))


def test_build(snapshots: Snapshots, built: tuple[Path, Ran]) -> None:
    snapshots.check("build", built[1])


def test_build_calibrated_then_replaced_by_one_of_a_target_size(snapshots: Snapshots, place: Path) -> None:
    common = ("build", "tiny", "-o", "out", "--no-verify")
    snapshots.check(
        "build-fitted",
        run(*common, "--quiet", "--calibrate", "--calibration-tokens", "1024"),
        run(*common, "--target-bpw", "9"),
        run(*common, "--target-bpw", "9", "--force"),
    )


def test_verify_and_report(snapshots: Snapshots, own: Path) -> None:
    snapshots.check("verify", run("verify", "artifact", "--quick", "--quiet"), run("report", "artifact"))


def test_inspect(snapshots: Snapshots, artifact: Path) -> None:
    snapshots.check("inspect", run("inspect", artifact))
    snapshots.check("inspect-json", run("inspect", artifact, "--json"))


def test_inspect_of_damage(snapshots: Snapshots, own: Path) -> None:
    (own / "LICENSE").write_text("mine")
    (own / "generation_config.json").unlink()
    (own / "more.txt").touch()
    snapshots.check("inspect-damaged", run("inspect", "artifact"))


def test_generate(snapshots: Snapshots, artifact: Path) -> None:
    Path("tools.json").write_text(TOOLS)
    common = ("generate", artifact, "--max-new-tokens", 8, "--greedy")
    question = "What is the capital of France?"
    snapshots.check(
        "generate",
        run(*common, "-p", question),
        run(*common, stdin=f"{question}\n"),
        run(*common, "--chat", stdin=f"{question}\n\nAnd of Italy?\n"),
        run(*common, "--raw", "-p", "The os module"),
        run(*common, "--system", "Be brief.", "--tools", "tools.json", "-p", "What time is it in Oslo?"),
        run(*common, "--raw", "--system", "x", "-p", "y"),
        run(*common, "--temperature", "0.5", "-p", "y"),
    )


def test_bench(snapshots: Snapshots, artifact: Path) -> None:
    ran = run("bench", artifact, "--context", 8, "--context", 64, "--repeats", 1, "--threads", 1)
    snapshots.check("bench", ran, measured=True)


def test_check_consumers(snapshots: Snapshots, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card_loop.locate, "oldest_onnxruntime", lambda: locate.Missing("it is not installed"))
    snapshots.check("check-consumers", run("check-consumers", "artifact", "--consumer", "onnxruntime"))


def test_chat_page(snapshots: Snapshots, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (locate.JS / "node_modules").is_dir():
        pytest.skip("the page's packages are not installed")
    snapshots.check("chat-page", run("chat-page", "artifact"), run("chat-page", "artifact"))


def test_synth(snapshots: Snapshots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(synth.FAMILY, "350M", (64, 8, 2, 96, True, (1,)))
    snapshots.check("synth", run("synth", "350M", "random"), run("synth", "350M", "random", "--quiet"))
