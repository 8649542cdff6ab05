"""Thousands of changed inputs through the readers; of every fault that shows, its smallest form."""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.faults.content import Content
from benchmarks.faults.isolated import Job, run_jobs
from benchmarks.faults.mutators import Mutation, apply, draw
from benchmarks.faults.surfaces import BY_NAME, SURFACES, Surface
from benchmarks.faults.verdict import Outcome

#: Inputs that one process reads before the next takes over, so that no memory of many can pile up.
BATCH = 250


@dataclass(frozen=True)
class Case:
    """An input: the surface, and what is done to its file."""

    surface: str
    mutations: tuple[Mutation, ...]

    def content(self, bases: Path) -> tuple[Content, list[str]]:
        surface = BY_NAME[self.surface]
        return apply(Content((bases / surface.base / surface.file).read_bytes()), self.mutations)

    def __str__(self) -> str:
        return f"{self.surface} {' '.join(map(str, self.mutations))}"


@dataclass(frozen=True)
class Finding:
    """One fault: its smallest input, what was done to the file, what lay there then, and how many inputs showed it."""

    stage: str
    case: str
    done: tuple[str, ...]
    content: str
    kind: str
    message: str
    error: str
    where: str
    count: int = 1


@dataclass
class Row:
    """Figures of one surface or stage. seconds: the slowest; bytes: the largest."""

    name: str
    inputs: int = 0
    successes: int = 0
    refusals: int = 0
    findings: int = 0
    seconds: float = 0.0
    bytes: int = 0

    def add(self, outcome: Outcome) -> None:
        self.inputs += 1
        self.successes += outcome.kind == "success"
        self.refusals += outcome.kind == "refusal"
        self.findings += not outcome.good
        self.seconds, self.bytes = max(self.seconds, outcome.seconds), max(self.bytes, outcome.bytes)


@dataclass
class Campaign:
    """What a run of the readers found."""

    rows: list[Row] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def make_cases(surface: Surface, count: int, seed: int) -> list[Case]:
    """The first `count` inputs of a surface; the same for the same seed."""
    found = []
    for number in range(count):
        dice = random.Random(f"{seed}/{surface.name}/{number}")
        found.append(Case(surface.name, draw(surface.families, surface.place, dice)))
    return found


def shares(total: int, surfaces: Sequence[Surface] = SURFACES) -> dict[str, int]:
    """How many inputs each surface gets, `total` in all, by weight."""
    weights = sum(surface.weight for surface in surfaces)
    found = {surface.name: int(total * surface.weight / weights) for surface in surfaces}
    rest = total - sum(found.values())
    for surface in surfaces[:rest]:
        found[surface.name] += 1
    return found


def run_readers(
    total: int,
    seed: int,
    bases: Path,
    *,
    surfaces: Sequence[Surface] = SURFACES,
    tell: Callable[[str], None] = lambda line: None,
) -> Campaign:
    """`total` inputs over `surfaces`, each in a process with limits; of every fault the smallest input is kept."""
    campaign = Campaign()
    warm()
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        for surface in surfaces:
            count, began = shares(total, surfaces)[surface.name], time.monotonic()
            row = Row(surface.name)
            faults: dict[tuple[str, str, str], list[tuple[Case, Outcome]]] = {}
            for case, outcome in _outcomes(make_cases(surface, count, seed), bases, Path(scratch)):
                row.add(outcome)
                if not outcome.good:
                    faults.setdefault(outcome.signature, []).append((case, outcome))
            for shown in faults.values():
                campaign.findings.append(smallest(shown, bases, Path(scratch)))
            campaign.rows.append(row)
            tell(
                f"{surface.name:<34} {row.inputs:>6} inputs {row.successes:>6} pass {row.refusals:>6} refused "
                f"{row.findings:>5} harm ({len(faults)} kinds), slowest {row.seconds:.2f} s, "
                f"{row.bytes / 1e6:.0f} MB, took {time.monotonic() - began:.0f} s"
            )
            for finding in campaign.findings[len(campaign.findings) - len(faults) :]:
                tell(f"    {finding.kind} {finding.error} {finding.where}: {finding.message[:160]} <- {finding.done}")
    return campaign


def _outcomes(cases: Sequence[Case], bases: Path, scratch: Path) -> Iterable[tuple[Case, Outcome]]:
    for start in range(0, len(cases), BATCH):
        batch = cases[start : start + BATCH]
        jobs = [Job(BY_NAME[case.surface], case.content(bases)[0]) for case in batch]
        yield from zip(batch, run_jobs(jobs, bases, scratch), strict=True)


def smallest(shown: list[tuple[Case, Outcome]], bases: Path, scratch: Path) -> Finding:
    """The finding of inputs that show the same fault, by the one with fewest mutations, of which those go that it
    does not need."""
    case, outcome = min(shown, key=lambda pair: (len(pair[0].mutations), len(str(pair[0]))))
    smaller = True
    while smaller and len(case.mutations) > 1:
        smaller = False
        for left_out in range(len(case.mutations)):
            fewer = Case(case.surface, case.mutations[:left_out] + case.mutations[left_out + 1 :])
            found = next(iter(run_jobs([Job(BY_NAME[case.surface], fewer.content(bases)[0])], bases, scratch)))
            if found.signature == outcome.signature:
                case, outcome, smaller = fewer, found, True
                break
    content, done = case.content(bases)
    return Finding(
        "readers", str(case), tuple(done), content.shown(), outcome.kind, outcome.message, outcome.error,
        outcome.where, len(shown),
    )  # fmt: skip


#: Where matplotlib keeps its list of fonts; gone when this process ends.
_fonts = tempfile.TemporaryDirectory(prefix="faults-matplotlib-")


def warm() -> None:
    """Import what the checks use, so that no input pays for it and no child of a fork does it again."""
    os.environ.setdefault("MPLCONFIGDIR", _fonts.name)
    import huggingface_hub.repocard
    import jinja2
    import matplotlib.font_manager
    import onnx_ir
    import onnxruntime
    import tokenizers

    import lfm2export.checkpoint
    import lfm2export.commands
    import lfm2export.inspection
    import lfm2export.package
    import lfm2export.report
    import lfm2export.text.folder
    import lfm2export.verify.source

    assert all(module in sys.modules for module in ("jinja2", "onnx_ir", "onnxruntime", "tokenizers"))
    del huggingface_hub, jinja2, matplotlib, onnx_ir, onnxruntime, tokenizers, lfm2export


def reproduce(text: str, bases: Path) -> tuple[Content, list[str], Outcome]:
    """The input that a finding names ("SURFACE family.name:seed ..."), and what comes of it now."""
    words = text.split()
    first = next(index for index, word in enumerate(words) if word.count(".") and word.rpartition(":")[2].isdigit())
    mutations = []
    for word in words[first:]:
        name, _, number = word.rpartition(":")
        family, _, mutator = name.partition(".")
        mutations.append(Mutation(family, mutator, int(number)))
    case = Case(" ".join(words[:first]), tuple(mutations))
    content, done = case.content(bases)
    warm()
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        outcome = next(iter(run_jobs([Job(BY_NAME[case.surface], content)], bases, Path(scratch))))
    return content, done, outcome
