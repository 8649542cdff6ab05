"""results/drafts.json, and results/drafts.md made from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import geometric_mean

from benchmarks.drafts.measure import Row
from benchmarks.drafts.tasks import KINDS

SCHEMA_VERSION = 1

HEAD = """# Drafts from the prompt

Made by `python -m benchmarks.drafts`; do not edit. Decode tokens a second of `generate`, greedy, over rounds that take
turns with and without drafts in one process; each step counts at the lower quartile of the steps of as many tokens, for
the machine was shared. A step feeds the last token and up to two drafts; its cost alone is measured with 256 tokens of
context, all but one taken back. Equal tokens: "all", or how many until plain decode and drafts part, and by how many
logits plain decode preferred its own token there.

Where the answer is given, weights are random and the model's choice is replaced by the text's next token, after every
step and choice were paid for: acceptance is that of real texts, speed that of the model's size. *pieces* are tokens of
the shipped tokenizer (3,072), *words* one token for each word and sign; LFM2's own cuts between the two. *copies*: JSON
from a text, an edit of code, an answer that quotes; *free*: stories and explanations; *page*: manual pages going on.
"""


@dataclass(frozen=True)
class Run:
    """One file in one process. units: "pieces" or "words" of given answers, "own" where the model chose itself.

    costs: seconds of a step by its tokens.
    """

    model: str
    dtype: str
    units: str
    machine: str
    threads: int
    versions: Mapping[str, str]
    costs: Mapping[str, float]
    rows: tuple[Row, ...]

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.model, self.dtype, self.units)


def read(path: Path) -> list[Run]:
    if not path.exists():
        return []
    document = json.loads(path.read_text(encoding="utf-8"))
    return [Run(**{**run, "rows": tuple(Row(**row) for row in run["rows"])}) for run in document["runs"]]


def add(path: Path, run: Run) -> None:
    """Store a run; of an earlier one of the same file and units, tasks that this one left out stay."""
    stored = {old.key: old for old in read(path)}
    tasks = {row.task for row in run.rows}
    left = [row for row in stored[run.key].rows if row.task not in tasks] if run.key in stored else []
    rows = sorted([*left, *run.rows], key=lambda row: (KINDS.index(row.kind), row.task))
    runs = sorted((stored | {run.key: replace(run, rows=tuple(rows))}).values(), key=lambda found: found.key)
    document = {"schema_version": SCHEMA_VERSION, "runs": [asdict(found) for found in runs]}
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def render(runs: Sequence[Run]) -> str:
    """The document."""
    return "\n".join([HEAD, *(_section(run) for run in runs)])


def _equal(row: Row) -> str:
    return "all" if row.parted is None else f"{row.parted}, gap {row.gap:.3f}"


def _section(run: Run) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    first = run.costs["1"]
    costs = ", ".join(f"{width} tokens {1e3 * cost:.1f} ms ({cost / first:.2f})" for width, cost in run.costs.items())
    rounds = "/".join(map(str, sorted({row.rounds for row in run.rows})))
    lines = [
        f"## {run.model}, {run.dtype}, {'own answers' if run.units == 'own' else f'given answers in {run.units}'}",
        "",
        f"{run.machine}; {run.threads} threads; {rounds} rounds. {versions}. A step of {costs}.",
        "",
        "| task | kind | prompt | answer | plain | drafts | ratio | drafts right | equal tokens |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in run.rows:
        lines.append(
            f"| {row.task} | {row.kind} | {row.prompt} | {row.answer} | {row.plain:.1f} | "
            f"{row.drafts:.1f} | {row.ratio:.2f} | {row.accepted} of {row.drafted} | "
            f"{_equal(row)} |"
        )
    for kind in dict.fromkeys(row.kind for row in run.rows):
        ratios = [row.ratio for row in run.rows if row.kind == kind]
        lines.append(f"| **{kind}** | | | | | | **{geometric_mean(ratios):.2f}** ({min(ratios):.2f} at least) | | |")
    return "\n".join([*lines, ""])
