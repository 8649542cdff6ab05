"""Paths, names, prompts and options that cannot be used: one line each, exit code 2."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import lfm2export
from command_line import Ran, error_line, run, run_process
from lfm2export.untrusted.text import MAX_TEXT_BYTES

SHIPPED = Path(lfm2export.__file__).parent / "shipped"
LONG = "n" * 300


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["build", "~nosuch/x"], "~nosuch/x"),
        (["build", LONG], "File name too long"),
        (["build", "a\0b"], "zero byte"),
        (["build", "-o", "a\0b"], "zero byte"),
        (["build", "-o", "~nosuch/x"], "~nosuch/x names the home of a user who is not here"),
        (["build", "-o", ""], "is empty"),
        (["generate", "", "-p", "hi"], "is empty"),
        (["inspect", LONG], "File name too long"),
        (["verify", "~nosuch/x"], "a user who is not here"),
        (["report", "owner/SOME-ONNX"], "hf download owner/SOME-ONNX --local-dir SOME-ONNX"),
        (["chat-page", "owner/SOME-ONNX"], "hf download"),
        (["verify", "owner/SOME-ONNX"], "hf download"),
        (["bench", "owner/SOME-ONNX"], "hf download"),
        (["check-consumers", "owner/SOME-ONNX"], "hf download"),
        (["build", "a\x1b[2Jb\nc"], "neither a folder nor a hub id"),
        (["build", "--dtype", "\x1b[2J\n"], "is not one of"),
        (["in\nspect"], "No such command"),
    ],
)
def test_names(arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = error_line(run(*arguments))
    assert words in line and "\x1b" not in line
    assert list(tmp_path.iterdir()) == []


def test_an_output_of_too_long_a_name(tmp_path: Path) -> None:
    ran = run("build", "-o", LONG, cwd=tmp_path)
    assert ran.code == 2 and "file name too long; choose another output" in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    """onnxruntime takes none: said before a build, and in place of a fault."""
    name = os.fsdecode(b"a\xff")
    assert "is not UTF-8; choose another output" in error_line(run("build", SHIPPED, "-q", "-o", name, cwd=tmp_path))
    shutil.copytree(SHIPPED, tmp_path / name)
    assert "is not UTF-8; rename" in error_line(run("build", name, "-q", "-o", "out", cwd=tmp_path))
    for command in ("generate", "verify", "inspect", "bench", "report", "check-consumers"):
        assert "is not UTF-8; rename" in error_line(run(command, name, cwd=tmp_path)), command


@pytest.mark.parametrize(
    ("options", "stdin", "words"),
    [
        (["--temperature", "1e-46"], b"hi", "temperature is 1e-46, expected 0 (greedy), or a number from 1e-06 to"),
        (["--temperature", "nan"], b"hi", "temperature is nan"),
        (["--temperature", "inf"], b"hi", "temperature is inf"),
        (["--repetition-penalty", "1e-46"], b"hi", "repetition_penalty is 1e-46"),
        ([], b"caf\xe9", "the prompt on stdin is not UTF-8 (byte 3 is 0xe9)"),
        (["--raw"], b"\xff\xfeh\0i\0", "not UTF-8 (UTF-16)"),
        ([], b" \n\t\n", "the prompt is empty"),
        (["--raw"], b"\n", "the prompt is empty"),
        (["-p", " "], b"", "the prompt is empty"),
        ([], b"x" * (MAX_TEXT_BYTES + 1), "has more than"),
        (["--tools", "deep.json", "-p", "x"], b"", "deep.json is not valid JSON (nested too deeply)"),
        (["--tools", "nowhere.json", "-p", "x"], b"", "nowhere.json is missing; give a JSON list of function objects"),
        (["--tools", "pipe", "-p", "x"], b"", "pipe is a pipe or a device, expected a file; write what it gives to"),
    ],
)
def test_prompts_and_options(artifact: Path, options: list[str], stdin: bytes, words: str) -> None:
    Path("deep.json").write_text("[" * 100_000 + "]" * 100_000)
    os.mkfifo("pipe")
    assert words in error_line(run("generate", artifact, *options, stdin=stdin))


def test_a_line_of_a_chat_that_is_not_utf_8(artifact: Path) -> None:
    ran = run("generate", artifact, "--chat", stdin=b"caf\xe9\n")
    assert ran.code == 2 and "Error: a line of the input is not UTF-8" in ran.stderr.splitlines()[-1]


def test_an_argument_that_is_not_utf_8(artifact: Path) -> None:
    assert "--prompt is not UTF-8" in error_line(run("generate", artifact, "-p", "caf\udce9"))


def test_prompts_of_a_file(artifact: Path) -> None:
    Path("empty").write_bytes(b"\xef\xbb\xbf \n")
    Path("latin").write_bytes(b"caf\xe9\n")
    for name, words in (("empty", "empty holds no prompt"), ("latin", "latin is not UTF-8"), ("none", "is missing")):
        assert words in error_line(run("verify", artifact, "--quick", "--quiet", "--prompts", name))


def test_a_byte_order_mark_is_no_part_of_a_prompt(built: tuple[Path, Ran], tmp_path: Path) -> None:
    from lfm2export.commands import _lines

    (tmp_path / "prompts").write_bytes(b"\xef\xbb\xbfOne\r\n\n Two\n")
    assert _lines(tmp_path / "prompts") == ["One", "Two"]
    marked = run("generate", built[0], "--greedy", "--raw", "--max-new-tokens", 4, stdin=b"\xef\xbb\xbfThe os")
    assert marked.stdout == run("generate", built[0], "--greedy", "--raw", "--max-new-tokens", 4, "-p", "The os").stdout


def test_a_prompts_file_may_be_a_link(tmp_path: Path) -> None:
    from lfm2export.generation.tools import read_tools

    (tmp_path / "away").mkdir()
    (tmp_path / "tools.json").write_text(json.dumps([{"name": "f"}]))
    link = tmp_path / "away" / "tools.json"
    link.symlink_to(tmp_path / "tools.json")
    assert read_tools(link) == [{"name": "f"}]
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert "loop cannot be followed" in error_line(run("verify", tmp_path, "--prompts", loop))


def test_a_prompt_that_only_the_bytes_of_are_utf_8(artifact: Path) -> None:
    variables = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = ("generate", artifact, "--greedy", "--max-new-tokens", 4, "-p", "Grüße")
    ran = run_process(*command, cwd=Path.cwd(), variables=variables)
    assert ran.code == 0 and ran.stdout == run(*command).stdout
