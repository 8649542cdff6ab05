"""results/speed-SIZE.json: every round of the runs that were kept, with machine and versions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.peers.locate import ROOT
from benchmarks.speed.rounds import Record, from_json, to_json

SCHEMA_VERSION = 1
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Head:
    """What a run was measured on. read_bandwidth: bytes a second. sizes: bytes of each contender's model files."""

    machine: str
    threads: int
    read_bandwidth: float
    versions: Mapping[str, str]
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class Measured:
    """One run: ratios are taken inside it and nowhere else."""

    head: Head
    records: tuple[Record, ...]

    @property
    def contexts(self) -> tuple[int, ...]:
        return tuple(sorted({run.context for record in self.records for run in record.runs}))


def add(size: str, head: Head, records: Sequence[Record], results: Path = RESULTS, *, further: bool = False) -> Path:
    """Store a run; stored ones go whose place it takes (:func:`replaces`).

    further: its rounds come behind those of a stored run of the same files, contexts, machine and versions.
    """
    new = Measured(head, tuple(records))
    if further:
        new = next((joined(run, new) for run in read(size, results) if continues(new, run)), new)
    kept = [run for run in read(size, results) if not replaces(new, run)]
    runs = sorted([*kept, new], key=lambda run: (run.contexts, run.head.machine, -len(run.head.sizes)))
    document = {
        "schema_version": SCHEMA_VERSION,
        "size": size,
        "runs": [{"head": asdict(run.head), "records": to_json(run.records)} for run in runs],
    }
    path = results / f"speed-{size}.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return path


def continues(new: Measured, old: Measured) -> bool:
    """Whether the two differ in when they were measured alone."""
    return new.contexts == old.contexts and replace(new.head, read_bandwidth=old.head.read_bandwidth) == old.head


def joined(old: Measured, new: Measured) -> Measured:
    """One run: the rounds of `old`, then those of `new`."""
    first = 1 + max(record.round for record in old.records)
    later = [replace(record, round=first + record.round) for record in new.records]
    fastest = max(old.head, new.head, key=lambda head: head.read_bandwidth)
    return Measured(fastest, (*old.records, *later))


def replaces(new: Measured, old: Measured) -> bool:
    """Of the same machine, with a context in common, and every contender of `old` is in `new`."""
    same = new.head.machine == old.head.machine and bool(set(new.contexts) & set(old.contexts))
    return same and set(old.head.sizes) <= set(new.head.sizes)


def read(size: str, results: Path = RESULTS) -> list[Measured]:
    """The runs stored for `size`, by context; none where there is no file."""
    path = results / f"speed-{size}.json"
    if not path.is_file():
        return []
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return [Measured(Head(**run["head"]), tuple(from_json(run["records"]))) for run in document["runs"]]


def sizes(results: Path = RESULTS) -> list[str]:
    """Shapes that have results."""
    found = [path.stem.removeprefix("speed-") for path in results.glob("speed-*.json")]
    return sorted(found, key=lambda size: (size[-1] != "M", float(size[:-1])))
