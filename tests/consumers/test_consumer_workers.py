"""A worker of a stranger's model: what it answers is read with limits, and it ends."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from lfm2export.consumers.workers import last_words, run_worker


def worker(folder: Path, body: str) -> list[str | Path]:
    path = folder / "worker.py"
    path.write_text(f"import os, subprocess, sys, time\nrequest, answers = sys.argv[1:]\n{body}\n")
    return [sys.executable, path]


def test_answers_are_the_whole_lines_of_json(tmp_path: Path) -> None:
    lines = ['{"task": 0}', "[1]", "not JSON", "[" * 100_000, '{"a": 1, "a": 2}', '{"task": 1}', '{"task": 2, "va']
    answers, said = run_worker(worker(tmp_path, f"open(answers, 'w').write(chr(10).join({lines}))"), {}, timeout=60)
    assert [answer["task"] for answer in answers] == [0, 1]
    assert said == ""


def test_a_worker_that_never_stops_is_stopped_with_what_it_started(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    child = f"import time\nwhile True: open({str(alive)!r}, 'w').write(str(time.time())); time.sleep(.05)"
    body = (
        "open(answers, 'w').write('{\"task\": 0}\\n')\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}])\ntime.sleep(600)"
    )
    begin = time.monotonic()
    answers, said = run_worker(worker(tmp_path, body), {}, timeout=2)
    assert time.monotonic() - begin < 30
    assert answers == [{"task": 0}] and said == "Error: stopped after 2 s"
    time.sleep(0.3)
    last = alive.read_text()
    time.sleep(0.3)
    assert alive.read_text() == last


def test_much_said_is_one_line(tmp_path: Path) -> None:
    body = "sys.stderr.write('x' * 1000000 + '\\nError: \\x1b[31mthe end\\n')"
    _, said = run_worker(worker(tmp_path, body), {}, timeout=60)
    assert len(said) <= 1 << 16
    assert last_words(said) == "Error:  [31mthe end"
