"""SIGKILL at random moments of every stage: the output is the old artifact or the new one, whole."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults import launch
from benchmarks.faults.launch import Ended
from benchmarks.faults.readers import Finding, Row
from benchmarks.faults.workplace import Workplace, end_fault, fingerprint

#: Stages and how many kills of a hundred each gets; "any" is a moment of the whole build.
SHARES = {
    "trace": 12, "prefetch": 12, "calibration": 14, "writing": 14, "packaging": 8, "verification": 14, "flush": 8,
    "exchange": 14, "any": 4,
}  # fmt: skip

#: A build that is not disturbed follows each so many kills: it succeeds, and clears away what they left.
CHECKED_EVERY = 8

#: So few kills are none of them in a calibration, which takes several times as long as the rest.
SHORT = 8

#: Seconds over which kills of the shortest stages are spread, so that they come before, in and after the moment itself.
SHORTEST = 0.002

#: Seconds that helper processes have to see that their owner is gone.
ORPHANS_MAY_TAKE = 5.0


@dataclass(frozen=True)
class Kill:
    """After `delay` of the length of `stage`, the process or its whole group is killed."""

    stage: str
    delay: float
    group: bool
    calibrated: bool


def make_kills(count: int, seed: int) -> list[Kill]:
    """The first `count` kills, every stage in proportion."""
    dice = random.Random(f"{seed}/kills")
    shares = {stage: share for stage, share in SHARES.items() if count > SHORT or stage != "calibration"}
    total = sum(shares.values())
    stages = [stage for stage, share in shares.items() for _ in range(max(1, round(count * share / total)))]
    dice.shuffle(stages)
    while len(stages) < count:
        stages.append(dice.choice(list(shares)))
    return [
        Kill(
            stage, dice.random(), dice.random() < 0.5, stage == "calibration" or (count > SHORT and dice.random() < 0.1)
        )
        for stage in stages[:count]
    ]


def run_kills(
    count: int, seed: int, sources: Sequence[Path], scratch: Path, tell: Callable[[str], None]
) -> tuple[list[Row], list[Finding]]:
    """`count` builds killed. sources: two checkpoints, so that the old artifact and the new one differ."""
    kills = make_kills(count, seed)
    findings: list[Finding] = []
    rows: dict[str, Row] = {}
    place, lengths = prepare(sources, scratch, any(kill.calibrated for kill in kills), tell)
    for number, kill in enumerate(kills):
        before = place.state()
        source = sources[1 if before.startswith("0") else 0]  # the new artifact is another than the old one
        fault, happened = _kill(kill, source, place, scratch / "said", lengths)
        if fault is None and (number % CHECKED_EVERY == CHECKED_EVERY - 1 or number == count - 1):
            fault = _undisturbed(source, place, scratch / "said")  # also clears away what earlier kills left
        row = rows.setdefault(kill.stage, Row(f"kill: {kill.stage}"))
        row.inputs += 1
        row.findings += fault is not None
        state = place.state()
        row.successes += fault is None and state != before
        row.refusals += fault is None and state == before
        if fault is not None:
            findings.append(Finding("kills", f"kill {number} of seed {seed}", (str(kill),), "", "kill", fault, "", ""))
            tell(f"    {kill}: {fault}")
            place.put(scratch / "artifacts" / "0")
        tell(f"kill {number + 1}/{count} {happened}: {state}")
    return list(rows.values()), findings


def prepare(
    sources: Sequence[Path], scratch: Path, calibrated: bool, tell: Callable[[str], None]
) -> tuple[Workplace, dict[str, float]]:
    """Build each source undisturbed, once for all stages: the versions that may lie there, and how long every stage
    takes."""
    known = _prepared.get((scratch, calibrated))
    if known is None:
        known = _prepared[scratch, calibrated] = _build_undisturbed(sources, scratch, calibrated, tell)
    place = Workplace(scratch / "place", known[0])
    place.put(scratch / "artifacts" / "0")
    return place, known[1]


_prepared: dict[tuple[Path, bool], tuple[dict[str, str], dict[str, float]]] = {}


def _build_undisturbed(
    sources: Sequence[Path], scratch: Path, calibrated: bool, tell: Callable[[str], None]
) -> tuple[dict[str, str], dict[str, float]]:
    """(versions by fingerprint, seconds by stage)."""
    versions: dict[str, str] = {}
    lengths: dict[str, list[float]] = {}
    for number, source in enumerate(sources):
        for options in ([], ["--calibrate", "--calibration-tokens", "1024"])[: 1 + calibrated]:
            out = scratch / "artifacts" / (str(number) + ("-calibrated" if options else ""))
            words = arguments(source, out, bool(options))
            ended = launch.start(words, scratch / "said", prepare=helpers_and_trace).wait(120)
            if ended.code != 0:
                raise RuntimeError(f"a sound build fails with exit code {ended.code}: {ended.stderr[-500:]}")
            versions[fingerprint(out)] = out.name
            _add_lengths(lengths, ended, bool(options))
    found = {stage: statistics.median(values) for stage, values in lengths.items()}
    found["prefetch"] = found["trace"]  # it runs beside the trace, as long as there is work
    found["any"] -= found["trace"]  # which most builds are spared
    tell("seconds of the stages: " + ", ".join(f"{stage} {value:.3f}" for stage, value in found.items()))
    return versions, found


def arguments(source: Path, out: Path, calibrated: bool, *, verify: bool = True) -> list[str]:
    found = ["build", str(source), "-o", str(out), "--force", "--threads", "2", "--quiet", "--no-cache"]
    return found + ["--calibrate", "--calibration-tokens", "1024"] * calibrated + ["--no-verify"] * (not verify)


def helpers() -> None:
    """Have tiny models start the helper processes that large ones do."""
    import lfm2export.ahead

    lfm2export.ahead.FEW = 0


def helpers_and_trace() -> None:
    """As :func:`helpers`, with the graph traced and not taken from an earlier build."""
    helpers()
    launch.trace_anew()


def _add_lengths(lengths: dict[str, list[float]], ended: Ended, calibrated: bool) -> None:
    for stage, begin, end in ended.stages:
        if stage != "calibration" or calibrated:
            lengths.setdefault(stage, []).append(end - begin)
    lengths.setdefault("any", []).append(ended.seconds)


def _kill(kill: Kill, source: Path, place: Workplace, said: Path, lengths: dict[str, float]) -> tuple[str | None, str]:
    """(fault, what happened): the build is started and killed, and everything that must be true then is looked at."""
    before = place.state()
    prepare = helpers_and_trace if kill.stage in ("trace", "prefetch") else helpers
    running = launch.start(arguments(source, place.out, kill.calibrated), said, prepare=prepare)
    reached = kill.stage == "any" or running.wait_for(kill.stage, 60)
    if reached:
        time.sleep(kill.delay * max(SHORTEST, lengths.get(kill.stage, 1.0)))
    running.kill(kill.group)
    ended = running.wait(90)
    happened = f"{'group' if kill.group else 'process'} in {kill.stage}, after {ended.seconds:.2f} s, code {ended.code}"
    left = launch.survivors(running.pid, ORPHANS_MAY_TAKE)
    if left:
        return f"{len(left)} processes still run {ORPHANS_MAY_TAKE:g} s later", happened
    if not reached:
        return f"the build ends with {ended.code} before {kill.stage}: {ended.stderr[-200:]}", happened
    state = place.state()
    if state.startswith(("damaged", "absent")):
        return f"was {before}, is {state}", happened
    return None, happened


def _undisturbed(source: Path, place: Workplace, said: Path) -> str | None:
    """A build that nobody kills: it is good, and nothing lies beside its output."""
    ended = launch.start(arguments(source, place.out, False, verify=False), said).wait(90)
    fault = end_fault(ended)
    if fault is not None or ended.code != 0:
        return f"the next build fails: {fault or ended.stderr[-200:]}"
    state, left = place.state(), place.beside()
    if state.startswith(("damaged", "absent")):
        return f"after the next build it is {state}"
    return f"the next build leaves {', '.join(left[:5])}" if left else None
