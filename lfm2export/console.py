"""What the command line prints: progress, tables, and one line for an error. Nothing else in the package prints."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lfm2export.progress import Progress, silent

#: Seconds between two plain lines of one stage, where output is no terminal.
PLAIN_INTERVAL = 10.0


@contextmanager
def progress_on_stderr(quiet: bool = False) -> Iterator[Progress]:
    """A listener for the library: bars with rate and time left on a terminal, plain lines elsewhere, on stderr."""
    if quiet:
        yield silent
    elif sys.stderr.isatty():
        with _bars() as listen:
            yield listen
    else:
        yield _PlainLines()


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    bars = Bars(*columns, console=Console(stderr=True))
    tasks: dict[str, int] = {}
    lock = threading.Lock()

    def listen(stage: str, done: int, total: int | None, unit: str) -> None:
        with lock:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)  # type: ignore[arg-type]

    with bars:
        yield listen


class _PlainLines:
    """A line when a stage starts and ends, and every ten seconds in between."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._ended: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, stage: str, done: int, total: int | None, unit: str) -> None:
        with self._lock:
            now = time.monotonic()
            ended = total is not None and done >= total
            if stage in self._ended or (not ended and now - self._last.get(stage, -1e9) < PLAIN_INTERVAL):
                return
            if ended:
                self._ended.add(stage)
            self._last[stage] = now
            print(f"{stage}: {_amount(done, total, unit)}", file=sys.stderr, flush=True)


def _amount(done: int, total: int | None, unit: str) -> str:
    if total is None:
        return "started"
    if unit == "B":
        return f"{done / 1e6:.1f} of {total / 1e6:.1f} MB"
    return f"{done} of {total} {unit}"
