"""The command line run as people run it: in the process where nothing depends on that, else in one of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from lfm2export import console
from lfm2export.cli import main

ROOT = Path(__file__).parents[2]

#: This package and no other one, whatever the current folder has.
COMMAND = (sys.executable, "-P", "-m", "lfm2export")


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    arguments: tuple[str, ...]
    code: int
    stdout: str
    stderr: str


def run(*arguments: object, cwd: Path | None = None, stdin: str | bytes = "") -> Ran:
    """In this process. Progress tells only the beginning and the end of a stage; the current folder is PLACE."""
    words = tuple(map(str, arguments))
    place = (cwd or Path.cwd()).resolve()
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(place):
        patch.setattr(console, "PLAIN_INTERVAL", 1e6)
        result = CliRunner().invoke(main, words, input=stdin)
    stdout, stderr = (said.replace(str(place), "PLACE") for said in (result.stdout, result.stderr))
    return Ran(words, int(result.exit_code), stdout, stderr)


def run_process(
    *arguments: object,
    cwd: Path,
    stdin: bytes = b"",
    variables: Mapping[str, str] | None = None,
    command: tuple[str, ...] = COMMAND,
) -> Ran:
    """In a process of its own."""
    words = tuple(map(str, arguments))
    done = subprocess.run(
        [*command, *words], cwd=cwd, input=stdin, env=environment(variables), capture_output=True, timeout=300
    )
    return Ran(words, done.returncode, done.stdout.decode(), done.stderr.decode())


def environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **(variables or {})}


def error_line(ran: Ran, code: int = 2) -> str:
    """The one line that `ran` ended with, after nothing on stdout."""
    assert ran.code == code, (ran.code, ran.stderr)
    assert ran.stdout == ""
    (line,) = ran.stderr.splitlines()
    assert line.startswith("Error: ")
    return line
