"""What progress says: how much, how fast, how long to go."""

from __future__ import annotations

import re
import sys

import pytest

from lfm2export.console import Stage, progress_on_stderr


@pytest.mark.parametrize(
    ("done", "total", "unit", "now", "words"),
    [
        (0, None, "graph", 5.0, "started"),
        (0, 102, "steps", 5.0, "0 of 102 steps"),
        (20, 102, "steps", 15.0, "20 of 102 steps, 2 steps/s, 41 s left"),
        (1024, 8192, "tokens", 45.0, "1,024 of 8,192 tokens, 26 tokens/s, 4:40 min left"),
        (50_000_000, 200_000_000, "B", 10.0, "50.0 of 200.0 MB, 10.0 MB/s, 15 s left"),
        (3_000_000, 90_000_000, "values", 7.0, "3.0 million of 90.0 million values, 1.5 million values/s, 58 s left"),
        (102, 102, "steps", 75.0, "102 of 102 steps, 1.5 steps/s, took 1:10 min"),
        (2, 2, "prompts", 5.5, "2 of 2 prompts, 4 prompts/s"),
    ],
)  # fmt: skip
def test_a_stage_is_described(done: int, total: int | None, unit: str, now: float, words: str) -> None:
    assert Stage(begin=5.0, first=0).describe(done, total, unit, now) == words


def test_what_was_done_before_does_not_count_as_speed() -> None:
    assert Stage(begin=0.0, first=90).describe(95, 100, "tokens", 10.0) == "95 of 100 tokens, 0.5 tokens/s, 10 s left"


def test_plain_lines_tell_start_and_end_of_a_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_on_stderr() as listen:
        for done in range(5):
            listen("q4: steps", done, 4, "steps")
        listen("q4: steps", 4, 4, "steps")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[0] == "q4: steps: 0 of 4 steps"
    assert lines[1].startswith("q4: steps: 4 of 4 steps, ")


def test_bars_on_a_terminal_show_rate_and_keep_few_stages(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    with progress_on_stderr() as listen:
        for stage in range(12):
            for done in range(3):
                listen(f"stage {stage}", done, 2, "steps")
        listen("the last", 1, 2, "steps")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    last = shown.splitlines()[-8:]
    assert any(line.startswith("the last") for line in last)
    assert any(re.search(r"stage 11 .* 2 of 2 steps, .* steps/s", line) for line in last)
    assert sum("stage" in line for line in last) <= 7
