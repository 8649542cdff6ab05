"""Changed checkpoints through the command line: an artifact or none, one line, and nothing else touched."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.faults import launch
from benchmarks.faults.bases import SECRET
from benchmarks.faults.content import listing, place
from benchmarks.faults.mutators.kinds import OUTSIDE
from benchmarks.faults.readers import Case, Finding, Row, make_cases
from benchmarks.faults.surfaces import SURFACES
from benchmarks.faults.workplace import NEITHER, end_fault, state_of
from lfm2export.errors import Lfm2ExportError

#: Seconds for one build.
SECONDS = 60.0

#: One build in so many is verified.
VERIFIED_EVERY = 5


def run_builds(
    count: int, seed: int, bases: Path, scratch: Path, tell: Callable[[str], None]
) -> tuple[list[Row], list[Finding]]:
    """`count` builds of changed checkpoints."""
    surfaces = [surface for surface in SURFACES if surface.name.startswith("build: ")]
    dice, row, findings = random.Random(f"{seed}/builds"), Row("whole builds"), []
    chosen = dice.choices(surfaces, [surface.weight for surface in surfaces], k=count)
    for number, surface in enumerate(chosen):
        case = make_cases(surface, number + 1, seed + 1_000_000)[number]
        fault, ended = _build(case, surface.base, surface.file, number, bases, scratch)
        row.inputs += 1
        row.successes += fault is None and ended.code == 0
        row.refusals += fault is None and ended.code != 0
        row.findings += fault is not None
        row.seconds = max(row.seconds, ended.seconds)
        content, done = case.content(bases)
        if fault is not None:
            findings.append(Finding("builds", str(case), tuple(done), content.shown(), "build", fault, "", ""))
        said = ended.error_lines[-1][:150] if ended.error_lines else ""
        tell(f"build {number + 1}/{count} {surface.name} {ended.seconds:.1f} s, code {ended.code}: {fault or said}")
        if fault is not None:
            tell(f"    {case} {done}")
    return [row], findings


def _build(
    case: Case, base: str, file: str, number: int, bases: Path, scratch: Path
) -> tuple[str | None, launch.Ended]:
    world = scratch / "world"
    shutil.rmtree(world, ignore_errors=True)
    shutil.copytree(bases / base, world / "model")
    shutil.copytree(bases / OUTSIDE, world / OUTSIDE)
    (world / "outputs").mkdir()
    place(world / "model" / file, case.content(bases)[0])
    before = listing(world)
    out = world / "outputs" / "out"
    options = [] if number % VERIFIED_EVERY == 0 else ["--no-verify"]
    words = ["build", str(world / "model"), "-o", str(out), "--quiet", "--threads", "1", "--no-cache", *options]
    running = launch.start(words, scratch / "said")
    ended = running.wait(SECONDS)
    after = {name: entry for name, entry in listing(world).items() if not Path(name).is_relative_to("outputs/out")}
    fault = _fault(ended, out, before, after)
    if fault is None and launch.survivors(running.pid):
        fault = "processes still run"
    return fault, ended


def _fault(ended: launch.Ended, out: Path, before: Mapping[str, object], after: Mapping[str, object]) -> str | None:
    if ended.code == -9:
        return f"it takes more than {SECONDS:g} s"
    if before.keys() != after.keys() or any(before[name] != after[name] for name in before):
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        return f"changed on the disk: {', '.join(changed[:4])}"
    fault = end_fault(ended)
    if fault is not None or ended.code != 0:
        return fault or ("refused, but there is an output" if out.exists() else None)
    state = state_of(out, {})
    if state != NEITHER:
        return f"success, but the artifact is {state}"
    return _unusable(out) or _leak(out)


def _unusable(out: Path) -> str | None:
    """Why what was built is refused by the tool's own readers."""
    from lfm2export.generation.defaults import read_defaults
    from lfm2export.inspection import inspect_artifact
    from lfm2export.text.tokenizer import ChatTokenizer

    try:
        read_defaults(out)
        tokenizer = ChatTokenizer(out)
        if tokenizer.has_chat_template:
            tokenizer.encode_chat([{"role": "user", "content": "Hello"}])
        if not inspect_artifact(out).good:
            return "inspect does not find the artifact good"
    except Lfm2ExportError as error:
        return f"the artifact just built is refused: {error}"
    return None


def _leak(out: Path) -> str | None:
    """A private text that lay outside the source, or code, in what is to be published."""
    for path in out.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        if SECRET.strip().encode() in data:
            return f"a file from outside the source is in {path.name}"
        if path.name.endswith("config.json") and b'"auto_map"' in data:
            return f"{path.name} says which code to run"
    return None
