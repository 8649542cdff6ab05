"""What the command line prints: lines, tables and progress. Nothing else in the package prints.

Names and texts of strangers are in all of it. None of them is a terminal's command, another line, or rich's markup.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from lfm2export.progress import Progress, silent
from lfm2export.untrusted.escape import on_terminal, one_line

if TYPE_CHECKING:
    from rich.table import Table

#: Seconds between two plain lines of one stage, where output is no terminal.
PLAIN_INTERVAL = 10.0

#: Stages that have ended and still have a bar.
ENDED_SHOWN = 6


def say(line: str, err: bool = False) -> None:
    """Print one line, whatever is in it."""
    click.echo(f"{line[: len(line) - len(line.lstrip(' '))]}{one_line(line)}", err=err)


def say_text(text: str, err: bool = False) -> None:
    """Print a text of several lines."""
    click.echo(on_terminal(text), err=err)


def show_table(table: Table, width: int) -> None:
    """Print `table` on the terminal's columns, or on `width` where there is none. Its cells hold plain text."""
    from rich.console import Console

    console = Console(
        width=None if sys.stdout.isatty() else width, markup=False, emoji=False, highlight=False, legacy_windows=False
    )
    with console.capture() as shown:  # rich itself would end the process where nobody reads on
        console.print(table)
    click.echo(shown.get(), nl=False)


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
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<20}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[shown]}", markup=False),
    )
    bars = Bars(*columns, console=Console(stderr=True))
    stages: dict[str, tuple[Stage, Any]] = {}
    lock = threading.Lock()

    def listen(stage: str, done: int, total: int | None, unit: str) -> None:
        with lock:
            if stage not in stages:
                stages[stage] = (Stage(time.monotonic(), done), bars.add_task(one_line(stage), total=total, shown=""))
                ended = [task.id for task in bars.tasks if task.finished and task.visible]
                for old in ended[: max(0, len(ended) - ENDED_SHOWN)]:
                    bars.update(old, visible=False)
            known, task = stages[stage]
            shown = known.describe(done, total, unit, time.monotonic())
            bars.update(task, completed=done, total=total, shown=shown)

    with bars:
        yield listen


class _PlainLines:
    """A line when a stage starts and ends, and every ten seconds in between."""

    def __init__(self) -> None:
        self._stages: dict[str, Stage] = {}
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
            known = self._stages.setdefault(stage, Stage(now, done))
            print(f"{one_line(stage)}: {known.describe(done, total, unit, now)}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Stage:
    """begin: when it was first heard of, in seconds; first: how much was done then."""

    begin: float
    first: int

    def describe(self, done: int, total: int | None, unit: str, now: float) -> str:
        """How much, how fast, and how long to go (at the end: how long it took), as far as that is known."""
        spent = now - self.begin
        rate = (done - self.first) / spent if spent > 0 and done > self.first else None
        parts = [_amount(done, total, unit)]
        if rate is not None:
            parts.append(f"{rate / 1e6:.1f} MB/s" if unit == "B" else f"{_short(rate)} {unit}/s")
        if total is not None and done >= total:
            if spent >= 1:
                parts.append(f"took {_clock(spent)}")
        elif rate is not None and total is not None:
            parts.append(f"{_clock((total - done) / rate)} left")
        return ", ".join(parts)


def _amount(done: int, total: int | None, unit: str) -> str:
    if total is None:
        return "started"
    if unit == "B":
        return f"{done / 1e6:.1f} of {total / 1e6:.1f} MB"
    return f"{_count(done)} of {_count(total)} {unit}"


def _count(value: int) -> str:
    return f"{value / 1e6:.1f} million" if value >= 1_000_000 else f"{value:,}"


def _short(rate: float) -> str:
    return f"{rate / 1e6:.1f} million" if rate >= 1e6 else f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d} min" if whole >= 60 else f"{whole} s"
