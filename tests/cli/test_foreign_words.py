"""Names and texts of strangers on the terminal: neither markup, nor a terminal's commands, nor further lines."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from rich.table import Table

from command_line import Ran, run
from lfm2export import commands
from lfm2export.console import progress_on_stderr, say, say_text, show_table


def test_foreign_names_in_a_graph_are_shown_as_they_are(built: tuple[Path, Ran], tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    folder = tmp_path / "foreign"
    shutil.copytree(built[0], folder)
    path = folder / "onnx" / "model_q4.onnx"
    model = onnx.load(path, load_external_data=False)
    shape = model.graph.input[0].type.tensor_type.shape
    shape.dim[0].dim_param = "[/x]"
    shape.dim[1].dim_param = "[bold]a\x1b[2J\nb"
    model.graph.output[0].name = "[red]logits:smile:"
    model.graph.node[0].op_type = "[/Cast]\x07"
    path.write_bytes(model.SerializeToString())
    ran = run("inspect", folder)
    assert ran.code == 1
    assert "input_ids int64[[/x], [bold]a [2J b]" in ran.stdout
    assert "[red]logits:smile:" in ran.stdout and "[/Cast]" in ran.stdout
    assert not any(mark in ran.stdout + ran.stderr for mark in "\x1b\x07")
    machine = run("inspect", folder, "--json")
    assert machine.code == 1 and "\x1b" not in machine.stdout


def test_lines_texts_and_tables(capsys: pytest.CaptureFixture[str]) -> None:
    foreign = "[/x] [bold]a\x1b[2J\rb:smile:"
    say(f"  {foreign}\nc")
    say_text(f"{foreign}\n\tc")
    table = Table(foreign, title=foreign)
    table.add_row(foreign)
    show_table(table, 60)
    with progress_on_stderr() as listen:
        listen(foreign, 0, None, "x")
    out, err = capsys.readouterr()
    assert out.startswith("  [/x] [bold]a [2J b:smile: c\n[/x] [bold]a\\x1b[2J\\x0db:smile:\n\tc\n")
    assert out.count("[/x] [bold]a") == 5 and err.startswith("[/x] [bold]a [2J b:smile:: started")


def test_bars_show_a_stage_as_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    with progress_on_stderr() as listen:
        listen("[/x] [bold]a", 1, 2, "[/y]")
    shown = capsys.readouterr().err
    assert "[/x] [bold]a" in shown and "[/y]" in shown


def test_an_answer_gives_a_terminal_no_commands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = "a\x1b]0;title\x07\n\tb\r\n"
    commands._write(answer)
    assert capsys.readouterr().out == answer
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    commands._write(answer)
    assert "\\x1b]0;title\\x07\n\tb" in capsys.readouterr().out
