"""results/faults.json: what every stage of the campaign last found; results/faults.md: the same as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.faults.readers import Finding, Row
from benchmarks.peers.locate import ROOT
from lfm2export.bench.machine import machine

SCHEMA_VERSION = 1
RESULTS = ROOT / "benchmarks" / "results"

#: Stages in the order of the table.
STAGES = ("readers", "builds", "kills", "full", "closed", "moving")

LIBRARIES = ("lfm2export", "huggingface_hub", "jinja2", "onnx", "onnx-ir", "onnxruntime", "tokenizers", "torch")

HEAD = """# Faults

Made by `python -m benchmarks.faults`; do not edit. What each stage does, and what counts as harm, is in the
README of the benchmarks. Time is that of the processors for inputs of the readers, else wall time; memory is what the
process grew by at most.
"""

TITLES = {
    "readers": "Changed files through the readers, in process (2 s of work and 1 GB for each)",
    "builds": "Changed checkpoints as whole builds (60 s for each)",
    "kills": "SIGKILL, of the process or its group",
    "full": "No space left",
    "closed": "A disk or folder that turns read-only",
    "moving": "A source that changes while it is read",
}


@dataclass(frozen=True)
class Stage:
    """One run of a stage. seconds: of the whole."""

    seed: int
    machine: str
    versions: Mapping[str, str]
    seconds: float
    rows: Sequence[Row]
    findings: Sequence[Finding]


def made(seed: int, seconds: float, rows: Sequence[Row], findings: Sequence[Finding]) -> Stage:
    """A run on this machine."""
    versions = {name: metadata.version(name).split("+")[0] for name in LIBRARIES}
    return Stage(seed, machine(), versions, round(seconds), tuple(rows), tuple(findings))


def add(name: str, stage: Stage, results: Path = RESULTS) -> None:
    """Store a run in place of the last one of that stage, and write the table anew."""
    stages = read(results) | {name: stage}
    document = {
        "schema_version": SCHEMA_VERSION,
        "stages": {known: asdict(stages[known]) for known in STAGES if known in stages},
    }
    text = json.dumps(document, indent=1, ensure_ascii=False)
    (results / "faults.json").write_text(text + "\n", encoding="utf-8")
    (results / "faults.md").write_text(render(stages), encoding="utf-8")


def read(results: Path = RESULTS) -> dict[str, Stage]:
    """Stage -> its last run."""
    path = results / "faults.json"
    if not path.is_file():
        return {}
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {name: _stage(value) for name, value in document["stages"].items()}


def _stage(value: dict[str, Any]) -> Stage:
    rows = tuple(Row(**row) for row in value["rows"])
    findings = tuple(Finding(**{**found, "done": tuple(found["done"])}) for found in value["findings"])
    return Stage(**{**value, "rows": rows, "findings": findings})


def render(stages: Mapping[str, Stage]) -> str:
    """The document."""
    parts = [HEAD]
    for name in STAGES:
        if name in stages:
            parts += [_table(name, stages[name]), _findings(stages[name].findings)]
    return "\n".join(part for part in parts if part)


def total(rows: Sequence[Row]) -> Row:
    """All rows as one."""
    found = Row("all")
    for row in rows:
        found.inputs += row.inputs
        found.successes += row.successes
        found.refusals += row.refusals
        found.findings += row.findings
        found.seconds, found.bytes = max(found.seconds, row.seconds), max(found.bytes, row.bytes)
    return found


def _table(name: str, stage: Stage) -> str:
    versions = ", ".join(f"{library} {version}" for library, version in stage.versions.items())
    columns = ["", "inputs", *_OUTCOMES.get(name, ("good", "refused")), "harm", "slowest, s", "largest, MB"]
    rows = [*stage.rows, total(stage.rows)] if len(stage.rows) > 1 else stage.rows
    lines = [
        f"## {TITLES[name]}\n",
        f"{stage.machine}; seed {stage.seed}, {stage.seconds / 60:.0f} min; {versions}.\n",
        "| " + " | ".join(columns) + " |",
        "|---" * len(columns) + "|",
    ]
    for row in rows:
        seconds = f"{row.seconds:.2f}" if row.seconds else ""
        memory = f"{row.bytes / 1e6:.0f}" if row.bytes else ""
        cells = (row.name, f"{row.inputs:,}", f"{row.successes:,}", f"{row.refusals:,}", f"{row.findings:,}")
        lines.append("| " + " | ".join((*cells, seconds, memory)) + " |")
    return "\n".join(lines) + "\n"


#: What a success and a refusal are called where they are something else.
_OUTCOMES = {"kills": ("new artifact", "old artifact")}


def _findings(findings: Sequence[Finding]) -> str:
    """Each finding by its smallest form."""
    lines = []
    for found in findings:
        what = " ".join(word for word in (found.kind, found.error, found.where) if word)
        lines.append(f"- {_code(found.case)} ({found.count}): {what}: {_code(found.message[:200])}")
        lines += [f"  - {_code(done[:200])}" for done in found.done]
    return "\n".join(lines) + ("\n" if lines else "")


def _code(text: str) -> str:
    return "`" + ascii(text)[1:-1].replace("`", "'").replace("|", "\\|") + "`"
