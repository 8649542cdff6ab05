"""A script in another process and environment: JSON in, a line of JSON for each answer out."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lfm2export.errors import ArtifactError
from lfm2export.untrusted.escape import one_line
from lfm2export.untrusted.json_reader import parse_json
from lfm2export.untrusted.text import read_bytes

#: Bytes of all answers together: a long run of five files has 2 MB.
MAX_ANSWER_BYTES = 64 << 20
#: Bytes of stderr that are looked at, from its end.
STDERR_BYTES = 1 << 16
#: Seconds that a worker has to end what it started.
END_SECONDS = 5.0

Answer = Mapping[str, Any]


def run_worker(
    command: Sequence[str | Path],
    request: Mapping[str, Any],
    *,
    timeout: float,
    environment: Mapping[str, str] | None = None,
) -> tuple[list[Answer], str]:
    """Run `command REQUEST ANSWERS`; the answers that it wrote before it ended, and what it said on stderr."""
    # A browser that is dying may still write into it.
    with tempfile.TemporaryDirectory(prefix="lfm2export-consumer-", ignore_cleanup_errors=True) as scratch:
        asked, answers = Path(scratch) / "request.json", Path(scratch) / "answers.jsonl"
        asked.write_text(json.dumps(request), encoding="utf-8")
        stdout, stderr = Path(scratch) / "stdout", Path(scratch) / "stderr"
        with stdout.open("wb") as out, stderr.open("wb") as err:
            process = subprocess.Popen(
                [*map(str, command), str(asked), str(answers)],
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,  # so that a browser that it started ends with it
            )
            try:
                process.wait(timeout)
                late = ""
            except subprocess.TimeoutExpired:
                late = f"Error: stopped after {timeout:.0f} s"
            finally:
                _end(process)
        return _answers(answers), late or _tail(stderr)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Nothing that the worker started outlives it."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError, subprocess.TimeoutExpired):
            if process.poll() is None:  # Node ends its browser, which is in a group of its own
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(END_SECONDS)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def _answers(path: Path) -> list[Answer]:
    """Every whole line of `path` that is a JSON object; the last one may have been cut by the end of the process.

    Raises:
        ArtifactError: there are more bytes than any worker writes.
    """
    if not path.exists():
        return []
    found: list[Answer] = []
    for line in read_bytes(path, ArtifactError, MAX_ANSWER_BYTES).splitlines():
        with contextlib.suppress(ArtifactError):
            value = parse_json(line, "an answer", ArtifactError, "run it again")
            if isinstance(value, dict):
                found.append(value)
    return found


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - STDERR_BYTES))
        return file.read().decode("utf-8", "replace")


def last_words(said: str) -> str:
    """The line of stderr that tells most: the first with an error, else the last."""
    lines = [one_line(line)[:500] for line in said.splitlines() if line.strip()]
    return next((line for line in lines if "Error" in line), lines[-1] if lines else "the process ended in silence")
