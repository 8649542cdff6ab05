"""A stranger's folder may hold modules named as ours or our libraries: none is imported from the current folder.

The build in it is the one that is typed first, with its verification.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from command_line import Ran, run_process

NAMES = ("numpy", "jinja2", "onnxruntime", "json", "lfm2export", "click", "torch", "tokenizers", "sitecustomize")
PROGRAM = Path(sys.executable).parent / "lfm2-export"


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stranger")
    for name in NAMES:
        (folder / f"{name}.py").write_text("open('RAN', 'a').write(__name__)\nraise SystemExit(9)\n")
    return folder


@pytest.fixture(scope="module")
def built_there(stranger: Path) -> Ran:
    return run_process("build", "-o", "out", "--quiet", "--threads", "2", cwd=stranger)


def test_a_good_build_is_verified(built_there: Ran, stranger: Path) -> None:
    assert (built_there.code, built_there.stderr) == (0, "")
    lines = built_there.stdout.splitlines()
    assert lines[0] == "No SOURCE given: exporting the small model that ships with this package."
    assert lines[-1] == "parity passed: see out/parity.html"
    assert (stranger / "out" / "parity.html").is_file()
    assert not (stranger / "RAN").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "out", "--quick"],
        ["generate", "out", "-p", "hi", "--max-new-tokens", "2"],
        ["bench", "out", "--context", "4", "--repeats", "1"],
        ["check-consumers", "out", "--consumer", "onnxruntime"],
        ["inspect", "out"],
    ],
)
def test_no_command_imports_from_the_current_folder(built_there: Ran, stranger: Path, arguments: list[str]) -> None:
    ran = run_process(*arguments, cwd=stranger)
    assert ran.code == 0, ran.stderr
    assert not (stranger / "RAN").exists()


@pytest.mark.skipif(not PROGRAM.exists(), reason="the program is not installed")
def test_nor_does_the_installed_program(stranger: Path) -> None:
    ran = run_process("--help", cwd=stranger, command=(str(PROGRAM),))
    assert ran.code == 0 and not (stranger / "RAN").exists()
