"""A script in another process and environment: JSON in, a line of JSON for each answer out."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Answer = Mapping[str, Any]


def run_worker(
    command: Sequence[str | Path],
    request: Mapping[str, Any],
    *,
    timeout: float,
    environment: Mapping[str, str] | None = None,
) -> tuple[list[Answer], str]:
    """Run `command REQUEST ANSWERS`; the answers that it wrote before it ended, and what it said on stderr."""
    with tempfile.TemporaryDirectory(prefix="lfm2export-consumer-") as scratch:
        asked, answers = Path(scratch) / "request.json", Path(scratch) / "answers.jsonl"
        asked.write_text(json.dumps(request), encoding="utf-8")
        try:
            ran = subprocess.run(
                [*map(str, command), str(asked), str(answers)],
                env={**os.environ, **(environment or {})},
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
            )
            said = ran.stderr
        except subprocess.TimeoutExpired:
            said = f"Error: stopped after {timeout:.0f} s"
        lines = answers.read_text(encoding="utf-8").splitlines() if answers.exists() else []
        return [json.loads(line) for line in lines], said


def last_words(said: str) -> str:
    """The line of stderr that tells most: the first with an error, else the last."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return next((line for line in lines if "Error" in line), lines[-1] if lines else "the process ended in silence")
