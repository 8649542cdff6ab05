"""What a program costs: wall time, processor time and memory of its whole process tree, from /proc (Linux).

Memory is sampled every :data:`INTERVAL` seconds from /proc/PID/status of every process of the tree: RssAnon is what is
resident and backed by no file, the memory that a machine must really have; VmRSS counts mapped files as well. A
spike shorter than the interval can be missed; VmHWM, the kernel's own high-water mark of one process, misses none.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lfm2export.bench.bandwidth import usable_cores

INTERVAL = 0.05
PROC = Path("/proc")
#: Fields of the first line of /proc/stat that count work: user, nice, system, irq, softirq, steal (guests are in user).
BUSY_FIELDS = (0, 1, 2, 5, 6, 7)


@dataclass(frozen=True)
class Usage:
    """One run. seconds: wall. cpu_seconds: user and system of the tree.

    others: share of the cores that other processes took meanwhile, None where unknown.
    peak_anonymous_bytes, peak_resident_bytes: the highest sums over the tree; the second is at least the high-water
    mark of its largest process.
    """

    seconds: float
    cpu_seconds: float
    others: float | None
    peak_anonymous_bytes: int
    peak_resident_bytes: int
    exit_code: int
    output: str

    @property
    def busy_cores(self) -> float:
        return self.cpu_seconds / self.seconds


def measure(command: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Usage:
    """Run `command` to its end; stdout and stderr together, as text, in the result."""
    started, busy = time.perf_counter(), busy_seconds()
    process = subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    sampler = _Sampler(process.pid)
    assert process.stdout is not None
    output = process.stdout.read().decode(errors="replace")
    _, status, used = os.wait4(process.pid, 0)
    seconds, now = time.perf_counter() - started, busy_seconds()
    sampler.stop()
    process.returncode = os.waitstatus_to_exitcode(status)  # Popen must not wait for it again
    own = used.ru_utime + used.ru_stime
    others = None if busy is None or now is None else max(0.0, (now - busy - own) / seconds / usable_cores())
    return Usage(
        seconds=seconds,
        cpu_seconds=own,
        others=others,
        peak_anonymous_bytes=sampler.anonymous,
        peak_resident_bytes=sampler.resident,
        exit_code=process.returncode,
        output=output,
    )


def busy_seconds() -> float | None:
    """Seconds that the cores worked, all together, for anyone; time stolen by the host counts (Linux)."""
    try:
        ticks = [int(field) for field in (PROC / "stat").read_text(encoding="ascii").splitlines()[0].split()[1:]]
    except OSError:
        return None
    return sum(ticks[field] for field in BUSY_FIELDS) / os.sysconf("SC_CLK_TCK")


class _Sampler:
    """A thread that remembers the highest sums over the tree of `root`."""

    def __init__(self, root: int) -> None:
        self.root, self.anonymous, self.resident = root, 0, 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.ended.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.ended.wait(INTERVAL):
            found = [_memory(pid) for pid in _tree(self.root)]
            self.anonymous = max(self.anonymous, sum(memory.anonymous for memory in found))
            self.resident = max(self.resident, sum(memory.resident for memory in found))
            self.resident = max(self.resident, *(memory.highest for memory in found))


def _tree(root: int) -> list[int]:
    """`root` and all that descends from it."""
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        for task in PROC.glob(f"{pid}/task/*/children"):
            try:
                todo += [child for child in map(int, task.read_text().split()) if not _borrows(child, pid)]
            except OSError:
                continue  # it ended between the listing and the reading
    return found


def _borrows(pid: int, parent: int) -> bool:
    """Whether `pid` has not begun a program of its own: until then it shows its parent's memory as its own."""
    try:
        return (PROC / str(pid) / "cmdline").read_bytes() == (PROC / str(parent) / "cmdline").read_bytes()
    except OSError:
        return False


@dataclass(frozen=True)
class _Memory:
    """Bytes of one process: anonymous, resident, and the most that was ever resident."""

    anonymous: int
    resident: int
    highest: int


def _memory(pid: int) -> _Memory:
    """Zeros once the process has ended."""
    try:
        lines = (PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return _Memory(0, 0, 0)
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    kilobytes = [int(values[key].split()[0]) if key in values else 0 for key in ("RssAnon", "VmRSS", "VmHWM")]
    return _Memory(*(1024 * value for value in kilobytes))
