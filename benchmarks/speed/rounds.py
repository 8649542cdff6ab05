"""Rounds: every contender once, in turn, each in a new process; how much of the machine others took meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.locate import ROOT, PeerError, environment
from benchmarks.processes import busy_seconds
from benchmarks.speed.contenders import Contender, command, files
from lfm2export.bench.bandwidth import usable_cores
from lfm2export.bench.results import Loaded, Run
from lfm2export.bench.run import warm

#: A run during which other processes took more than this share of the cores is disturbed, and is run again.
DISTURBED = 0.03
ATTEMPTS = 3

#: Seconds for which a run waits, at most, until others leave the cores alone.
PATIENCE = 15.0


@dataclass(frozen=True)
class Record:
    """One process of one contender in one round. others: share of the cores that others took, None where unknown."""

    contender: str
    round: int
    loaded: Loaded
    runs: tuple[Run, ...]
    others: float | None


def measure_rounds(
    contenders: Mapping[str, tuple[Contender, Path]],
    request: Mapping[str, Any],
    rounds: int,
    *,
    on_record: Callable[[Record], None],
    seconds: float | None = None,
) -> list[Record]:
    """Every contender `rounds` times, in an order that turns by one each round.

    Args:
        request: threads, contexts from short to long, decoded.
        seconds: no further round begins when it would probably not end by then.
    """
    records: list[Record] = []
    begin = time.perf_counter()
    names = list(contenders)
    for number in range(rounds):
        spent = time.perf_counter() - begin
        if seconds is not None and number and spent + 1.15 * spent / number > seconds:
            break
        for name in names[number % len(names) :] + names[: number % len(names)]:
            record = _undisturbed(*contenders[name], request, number)
            records.append(record)
            on_record(record)
    return records


def _undisturbed(contender: Contender, path: Path, request: Mapping[str, Any], number: int) -> Record:
    """The first run that is not disturbed, else the least disturbed one."""
    tried: list[Record] = []
    while len(tried) < ATTEMPTS:
        tried.append(_measure(contender, path, request, number))
        if tried[-1].others is None or tried[-1].others <= DISTURBED:
            break
    return min(tried, key=lambda record: record.others or 0.0)


def _measure(contender: Contender, path: Path, request: Mapping[str, Any], number: int) -> Record:
    program, asked = command(contender, path, request)
    warm(files(contender, path))
    wait_for_calm(PATIENCE)
    busy, begin = busy_seconds(), time.perf_counter()
    before = os.times()
    done = subprocess.run(
        [*program, json.dumps(asked)], capture_output=True, text=True, check=False, cwd=ROOT, env=environment()
    )
    wall, after = time.perf_counter() - begin, os.times()
    now = busy_seconds()
    own = sum(after[:4]) - sum(before[:4])
    # A browser's processes are not all waited for, so what they took is not known.
    unknown = busy is None or now is None or contender.kind == "wasm"
    others = None if unknown else others_share((now or 0.0) - (busy or 0.0), own, wall)
    answer = json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {}
    if "loaded" not in answer:
        raise PeerError(f"{contender.name}: {answer.get('error') or done.stderr.strip()[-1000:] or done.returncode}")
    runs = tuple(Run(**run) for run in answer["runs"])
    return Record(contender.name, number, Loaded(**answer["loaded"]), runs, others)


def wait_for_calm(patience: float) -> None:
    """Return after a second in which the cores had nothing to do, or when `patience` seconds are over."""
    end = time.perf_counter() + patience
    while time.perf_counter() < end:
        busy, begin = busy_seconds(), time.perf_counter()
        time.sleep(1.0)
        now = busy_seconds()
        if busy is None or now is None or others_share(now - busy, 0.0, time.perf_counter() - begin) <= DISTURBED:
            return


def others_share(busy: float, own: float, wall: float) -> float:
    """Share of the cores that others took: of `busy` core seconds in `wall` seconds, `own` were the worker's."""
    return max(0.0, (busy - own) / (wall * usable_cores()))


def to_json(records: Sequence[Record]) -> list[dict[str, Any]]:
    return [asdict(record) for record in records]


def from_json(stored: Sequence[Mapping[str, Any]]) -> list[Record]:
    return [
        Record(
            **{
                **record,
                "loaded": Loaded(**record["loaded"]),
                "runs": tuple(Run(**run) for run in record["runs"]),
            }
        )
        for record in stored
    ]
