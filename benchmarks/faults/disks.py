"""A disk that is full or turns read-only while an artifact is written: exit code 2, one line, the old one stays."""

from __future__ import annotations

import functools
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults import launch
from benchmarks.faults.kills import arguments, prepare
from benchmarks.faults.launch import Limits
from benchmarks.faults.readers import Finding, Row
from benchmarks.faults.workplace import Workplace, end_fault

#: Bytes of a page, the least that a file takes on a disk in memory.
PAGE = 4096


def run_full_disks(
    count: int, seed: int, sources: Sequence[Path], scratch: Path, tell: Callable[[str], None]
) -> tuple[list[Row], list[Finding]]:
    """Builds with room for a part of what they write: `count` amounts from nothing to nearly all."""
    whole, _ = prepare(sources, scratch, False, tell)
    row, limited = Row("full disk"), Row("file size limit")
    findings: list[Finding] = []
    old, new = (_pages(scratch / "artifacts" / str(number)) for number in (0, 1))
    mounts = can_mount(scratch)
    if not mounts:
        tell("nothing can be mounted here: a limit on the size of files takes the place of a small disk")
    for number in range(count):
        share = number / count
        if mounts and number % 4 != 3:
            with disk(scratch / "disk", old + PAGE + int(share * new / PAGE) * PAGE):
                place = Workplace(scratch / "disk" / "place", whole.versions)
                fault = _disturbed(
                    place, scratch, sources[1], Disturbance(prepare=_no_forecast if number % 4 else None)
                )
            name, kept = f"{share:.0%} of {new:,} bytes", row
        else:
            place = Workplace(scratch / "place", whole.versions)
            largest = max(path.stat().st_size for path in (scratch / "artifacts" / "1").rglob("*") if path.is_file())
            limit = int(share * largest)
            fault = _disturbed(place, scratch, sources[1], Disturbance(limits=Limits(file_bytes=limit)))
            name, kept = f"no file above {limit:,} bytes", limited
        _count(kept, fault, findings, f"full disk {number}", name, tell)
    return [row, limited], findings


def run_closed_disks(
    count: int, seed: int, sources: Sequence[Path], scratch: Path, tell: Callable[[str], None]
) -> tuple[list[Row], list[Finding]]:
    """The disk turns read-only, or the output's folder is closed to the user who builds, at a random moment."""
    whole, lengths = prepare(sources, scratch, False, tell)
    dice = random.Random(f"{seed}/closed")
    findings: list[Finding] = []
    remounted, closed = Row("read-only disk"), Row("closed folder")
    for number in range(count):
        stage, part = dice.choice(("trace", "writing", "packaging", "flush", "verification")), dice.random()
        name = f"{part:.0%} of {stage}"
        if number % 2 == 0 and can_mount(scratch):
            with disk(scratch / "disk", 64 << 20) as remount:
                place = Workplace(scratch / "disk" / "place", whole.versions)
                fault = _disturbed(
                    place, scratch, sources[1], Disturbance(remount, stage, part * lengths.get(stage, 0.1))
                )
            kept = remounted
        else:
            place = Workplace(scratch / "place", whole.versions)
            limits = Limits(user=launch.NOBODY) if os.geteuid() == 0 else None
            close = functools.partial(_close, place.parent)
            moment = Disturbance(close, stage, part * lengths.get(stage, 0.1), limits)
            fault = _disturbed(place, scratch, sources[1], moment)
            kept = closed
        _count(kept, fault, findings, f"closed disk {number} of seed {seed}", name, tell)
    return [remounted, closed], findings


def _count(
    row: Row, fault: str | None, findings: list[Finding], case: str, done: str, tell: Callable[[str], None]
) -> None:
    """fault: None for a refusal, "" for a build that was not disturbed after all."""
    row.inputs += 1
    row.successes += fault == ""
    row.refusals += fault is None
    if fault:
        row.findings += 1
        findings.append(Finding("disks", case, (done,), "", row.name, fault, "", ""))
    tell(f"{row.name}, {done}: {fault if fault else 'refused, nothing lost' if fault is None else 'built'}")


@dataclass(frozen=True)
class Disturbance:
    """What is done, so many seconds into a stage; limits and `prepare` hold from the start."""

    act: Callable[[], object] = lambda: None
    stage: str | None = None
    delay: float = 0.0
    limits: Limits | None = None
    prepare: Callable[[], object] | None = None


def _no_forecast() -> None:
    """Have the build begin whatever room there is: the forecast would refuse the smallest disks before it writes."""
    import lfm2export.space

    lfm2export.space.check_space = lambda *arguments: None


def _disturbed(place: Workplace, scratch: Path, source: Path, moment: Disturbance) -> str | None:
    """A build over the old artifact, disturbed: "" where it succeeds, None where it is refused in one line with the old
    artifact as it was and nothing beside it, else the fault."""
    place.put(scratch / "artifacts" / "0")
    said = scratch / "said"
    if moment.limits is not None and moment.limits.user is not None:
        for path in (place.parent, *place.parent.rglob("*"), said):
            os.chown(path, moment.limits.user, moment.limits.user)
    prepare = launch.trace_anew if moment.stage == "trace" else moment.prepare
    running = launch.start(arguments(source, place.out, False), said, moment.limits, prepare)
    if moment.stage is not None and running.wait_for(moment.stage, 60):
        time.sleep(moment.delay)
        moment.act()
    ended = running.wait(90)
    open_again(place.parent)
    state, left = place.state(), place.beside()
    if ended.code == 0:
        return "" if state == "1" and not left else f"success, but it is {state} and beside it lies {left[:3]}"
    fault = end_fault(ended)
    if fault is None and state != "0":
        fault = f"refused, but it is {state}"
    if fault is None and left and moment.stage is None:  # a disk that is closed for good keeps what lies on it
        fault = f"left behind: {', '.join(left[:3])}"
    return fault


def _close(folder: Path) -> None:
    """No new name in the output's folder and those below it."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o555)


def open_again(folder: Path) -> None:
    """Undo :func:`_close`, as far as the disk lets it."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir() and os.access(folder, os.W_OK):
            try:
                path.chmod(0o755)
            except OSError:
                return


def can_mount(scratch: Path) -> bool:
    """Whether a disk in memory may be mounted."""
    try:
        with disk(scratch / "disk", 1 << 20):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def disk(folder: Path, size: int) -> Iterator[Callable[[], None]]:
    """A disk of `size` bytes in memory at `folder`, and what makes it read-only."""
    folder.mkdir(parents=True, exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={size},mode=777", "tmpfs", str(folder))

    def close() -> None:
        until = time.monotonic() + 2
        while time.monotonic() < until:  # refused while a file is open for writing
            try:
                return _run("mount", "-o", "remount,ro", str(folder))
            except subprocess.CalledProcessError:
                time.sleep(0.002)

    try:
        yield close
    finally:
        _run("umount", "-l", str(folder))


def _run(*words: str) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _pages(folder: Path) -> int:
    """Bytes that `folder` takes on a disk of pages."""
    files = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return sum(-(-size // PAGE) * PAGE for size in files)
