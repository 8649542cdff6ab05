"""Each exit code means one thing, in the README and in ci/release.sh too, and comes with one line."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from command_line import COMMAND, ROOT, environment, error_line, run, run_process
from lfm2export import ISSUES, __version__, inspection
from lfm2export.errors import ArtifactError, GraphError
from lfm2export.exit_codes import MEANINGS, ExitCode

Raise = Callable[[BaseException], None]


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Raise:
    """Lets `inspect .` raise what is given."""
    monkeypatch.chdir(tmp_path)

    def plant(error: BaseException) -> None:
        def fail(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(inspection, "inspect_artifact", fail)

    return plant


def test_the_readme_has_the_table() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\d+) \| (.*) \|$", readme[readme.index("| exit code | means |") :], re.MULTILINE))
    assert {int(code): meaning for code, meaning in rows.items()} == MEANINGS
    assert set(MEANINGS) == set(ExitCode)


def test_the_release_script_has_the_table() -> None:
    script = (ROOT / "ci" / "release.sh").read_text(encoding="utf-8")
    head = script[script.index("# Exit codes") : script.index("\nset -euo")]
    text = re.sub(r"\n# {6,}(?=\D)", " ", head)
    rows = {int(code): meaning for code, meaning in re.findall(r"^# +(\d+)  (.*)$", text, re.MULTILINE)}
    assert rows == MEANINGS


def test_faults_are_reported_at_the_projects_tracker() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Issues"] == ISSUES


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no such thing"),
        KeyError("layer_types"),
        RecursionError("too deep"),
        OSError("data file ends at 3"),
        EOFError(),
        GraphError("the traced graph has no embedding lookup"),
    ],
)
def test_a_fault_of_the_tool_is_70_and_asks_to_be_reported(raising: Raise, error: Exception) -> None:
    raising(error)
    line = error_line(run("inspect", "."), 70)
    assert ISSUES in line and f"lfm2export {__version__}" in line and "torch 2" in line and "Python 3" in line
    assert "--traceback" in line
    assert str(error).strip("'") in line


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ArtifactError("x.onnx\nis \x1b[31mred"), "Error: x.onnx is [31mred"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a\nb"), "Error: a b: No such file"),
        (OSError(errno.ENOSPC, "No space left on device", "out/x"), "out/x: No space left on device; free some"),
        (PermissionError(errno.EACCES, "Permission denied", b"out"), "out: Permission denied; check its permissions"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "n" * 300), "File name too long; give a shorter name"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (MemoryError(), "not enough memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "not enough memory"),
        (RuntimeError("bad allocation"), "not enough memory"),
    ],
)
def test_what_the_user_can_mend_is_2(raising: Raise, error: Exception, words: str) -> None:
    raising(error)
    assert words in error_line(run("inspect", "."), 2)


def test_an_interruption_is_130_whatever_became_of_it(raising: Raise) -> None:
    raising(KeyboardInterrupt())
    ran = run("inspect", ".")
    assert (ran.code, ran.stderr) == (130, "Interrupted.\n")
    wrapped = ImportError("numpy is broken")
    wrapped.__cause__ = KeyboardInterrupt()
    raising(wrapped)
    assert run("inspect", ".").code == 130


@pytest.mark.parametrize("arguments", [["--traceback", "inspect", "."], ["inspect", ".", "--traceback"]])
def test_the_traceback_is_shown_on_demand(raising: Raise, arguments: list[str]) -> None:
    raising(KeyError("\x1b[2J"))
    ran = run(*arguments)
    assert ran.code == 70 and "Traceback" in ran.stderr and "in fail" in ran.stderr and "\x1b" not in ran.stderr
    assert ran.stderr.splitlines()[-1].startswith("Error: ")


def test_a_reader_that_goes_away_ends_it_quietly(built: tuple[Path, object]) -> None:
    for command in (["inspect"], ["inspect", "--json"], ["inspect", "--help"]):
        reader, writer = os.pipe()
        os.close(reader)
        process = subprocess.Popen(
            [*COMMAND, *command, built[0]], stdout=writer, stderr=subprocess.PIPE, env=environment(), text=True
        )
        os.close(writer)
        assert process.communicate()[1] == "" if "--help" in command else "Traceback" not in process.communicate()[1]
        assert process.returncode == ExitCode.OUTPUT_CLOSED


@pytest.mark.skipif(os.name != "posix", reason="a shell closes the streams")
@pytest.mark.parametrize(
    ("closed", "command", "code"),
    [
        ("<&-", ["generate"], 2),
        ("<&-", ["generate", "--chat"], 0),
        (">&-", ["inspect"], 0),
        ("2>&-", ["inspect", "nowhere"], 2),
        (">&- 2>&- <&-", ["inspect"], 0),
    ],
)
def test_a_stream_that_is_closed_is_empty_or_leads_nowhere(
    built: tuple[Path, object], tmp_path: Path, closed: str, command: list[str], code: int
) -> None:
    shell = ("sh", "-c", f'exec "$@" {closed}', "sh", *COMMAND)
    folder = [] if command[-1] == "nowhere" else [built[0]]
    ran = run_process(command[0], *folder, *command[1:], cwd=tmp_path, command=shell)
    assert ran.code == code, ran.stderr
    assert "fault" not in ran.stderr
    assert "2>" in closed or code == 0 or "the prompt is empty" in ran.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_under_stdout_is_2(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*COMMAND, "--version"], stdout=full, stderr=subprocess.PIPE, env=environment())
    assert done.returncode == 2 and b"No space left" in done.stderr and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_a_terminal_that_knows_ascii_only(
    built: tuple[Path, object], tmp_path: Path, variables: dict[str, str]
) -> None:
    folder = tmp_path / "Übung"
    folder.symlink_to(built[0], target_is_directory=True)
    ran = run_process("inspect", folder, cwd=tmp_path, variables=variables)
    assert ran.code == 0 and "batch_size" in ran.stdout, ran.stderr
    answer = run_process("generate", built[0], "-p", "Grüße", "--system", "é", cwd=tmp_path, variables=variables)
    assert answer.code == 0, answer.stderr


INTERRUPTING = """
import signal, sys
module, number = sys.argv[1:3]
del sys.argv[1:3]
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            signal.raise_signal(getattr(signal, number))
sys.meta_path.insert(0, Finder())
from lfm2export.__main__ import main
main()
"""

MODULES = ["click", "lfm2export.endings", "lfm2export.cli", "lfm2export.commands", "numpy", "onnxruntime", "tokenizers"]


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_while_something_is_imported(
    built: tuple[Path, object], tmp_path: Path, module: str, number: str, code: int
) -> None:
    command = (sys.executable, "-P", "-c", INTERRUPTING, module, number)
    ran = run_process("generate", built[0], "-p", "hi", cwd=tmp_path, command=command)
    assert ran.code == code, ran.stderr
    assert ran.stderr == ("Interrupted.\n" if code == 130 else "")


def test_sigterm_cleans_up_as_a_ctrl_c_does(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "build", "-o", "out", "--threads", "2"],
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "trace: started\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    said = process.stderr.read()
    assert process.wait() == 143 and "Traceback" not in said
    assert list(tmp_path.iterdir()) == []
