"""Inputs one after the other in a forked process that may not grow, hang, write elsewhere or look where it must not.

The parent has imported everything and holds no threads; a child takes inputs until one ends it. What it does is heard
by an audit hook (PEP 578): files opened, made, moved and removed, programs started, connections made.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults.content import Content, listing, place
from benchmarks.faults.mutators.kinds import OUTSIDE
from benchmarks.faults.surfaces import Surface
from benchmarks.faults.verdict import Outcome, judge_error

#: Seconds of work of a process that only waits.
IDLE = 0.2

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
#: Event -> where its arguments have paths, each with the descriptor of the folder that it starts from (None: no such).
_CHANGES: dict[str, tuple[tuple[int, int | None], ...]] = {
    "os.mkdir": ((0, 2),), "os.remove": ((0, 1),), "os.rmdir": ((0, 1),), "os.rename": ((0, 2), (1, 3)),
    "os.link": ((0, 2), (1, 3)), "os.symlink": ((1, 2),), "os.truncate": ((0, None),), "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),), "os.utime": ((0, 3),),
}  # fmt: skip
_PROGRAMS = ("subprocess.Popen", "os.exec", "os.system", "os.posix_spawn", "os.fork", "os.startfile")
_NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.bind")


@dataclass(frozen=True)
class Allowed:
    """What an input may take. seconds: of work, its child processes' too. patience: seconds in which its process may do
    nothing. bytes: that it may grow by."""

    seconds: float = 2.0
    patience: float = 25.0
    bytes: int = 1 << 30


@dataclass(frozen=True)
class Job:
    """The file of `surface` with `content` in its place."""

    surface: Surface
    content: Content


def run_jobs(jobs: Sequence[Job], bases: Path, scratch: Path, allowed: Allowed | None = None) -> Iterator[Outcome]:
    """The outcome of every job in order; a process that ends is followed by another."""
    allowed, done = allowed or Allowed(), 0
    while done < len(jobs):
        for outcome in _one_process(jobs[done:], bases, scratch, allowed):
            yield outcome
            done += 1


def _one_process(jobs: Sequence[Job], bases: Path, scratch: Path, allowed: Allowed) -> Iterator[Outcome]:
    """Outcomes until the process ends; the input that ended it is among them."""
    back, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(back)
            _live(jobs, bases, scratch, write, allowed)
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    try:
        yield from _hear(child, back, allowed)
    finally:
        os.close(back)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


def _hear(child: int, pipe: int, allowed: Allowed) -> Iterator[Outcome]:
    pending, begun, spent = b"", None, 0.0
    while True:
        if select.select([pipe], [], [], 0.1)[0]:
            data = os.read(pipe, 1 << 16)
            if not data:
                break
            pending += data
            *lines, pending = pending.split(b"\n")
            for line in lines:
                if line == b"begin":
                    begun, spent = time.monotonic(), _tree_seconds(child)
                else:
                    begun = None
                    yield Outcome(**json.loads(line))
        elif begun is not None:
            waited, used = time.monotonic() - begun, _tree_seconds(child) - spent
            endless = used > 2 * allowed.seconds
            if endless or (waited > allowed.patience and used < IDLE) or waited > 10 * allowed.patience:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                kind = "does not end" if used >= IDLE else "waits forever"
                yield Outcome(kind, f"ended after {waited:.0f} s, {used:.0f} s of work", seconds=used)
                return
    _, status = os.waitpid(child, 0)
    if begun is not None:
        code = os.waitstatus_to_exitcode(status)
        ended = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        yield Outcome("crash", f"the process ended: {ended}")


def _processor_seconds(process: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _tree_seconds(process: int) -> float:
    """The time of a process, of children that it has waited for, and of those that run."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    total = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    for task in Path(f"/proc/{process}/task").iterdir():
        with contextlib.suppress(OSError):
            for child in (task / "children").read_text().split():
                with contextlib.suppress(OSError):
                    total += _processor_seconds(int(child))
    return total


def _live(jobs: Sequence[Job], bases: Path, scratch: Path, pipe: int, allowed: Allowed) -> None:
    """The child's life: prepare, then one input after the other."""
    os.environ |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "TOKENIZERS_PARALLELISM": "false"}
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    shutil.copytree(bases / OUTSIDE, scratch / OUTSIDE)
    shutil.copytree(bases / "checkpoint", scratch / "reference")
    shutil.copytree(bases / "artifact" / "onnx", scratch / "onnx")
    os.chdir(scratch)
    watch = _Watch(scratch)
    sys.addaudithook(watch.hear)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _remember_tokenizers()
    limit = _memory("VmSize") + allowed.bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for job in jobs:
        outcome = _one_job(job, bases, scratch, watch, allowed, lambda: os.write(pipe, b"begin\n"))
        os.write(pipe, json.dumps(asdict(outcome)).encode() + b"\n")


def _remember_tokenizers() -> None:
    """Try a tokenizer that was tried before no second time: most inputs change another file."""
    from lfm2export.text import tokenizer_file

    try_tokenizer = vars(tokenizer_file)["try_tokenizer"]
    known: dict[Any, Any] = {}

    def tried(json_text: str, texts: Sequence[str]) -> Any:
        key = json_text, tuple(texts)
        if key not in known:
            known[key] = try_tokenizer(json_text, texts)
        return known[key]

    vars(tokenizer_file)["try_tokenizer"] = tried


def _one_job(
    job: Job, bases: Path, scratch: Path, watch: _Watch, allowed: Allowed, begin: Callable[[], object]
) -> Outcome:
    folder = scratch / job.surface.base
    if not folder.exists():
        shutil.copytree(bases / job.surface.base, folder)
    place(folder / job.surface.file, job.content)
    before = listing(scratch)
    begin()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    resident, started = _memory("VmRSS"), _tree_seconds(os.getpid())
    watch.begin(folder, job.surface.writes)
    try:
        job.surface.check(folder)
        outcome = Outcome("success")
    except BaseException as error:  # a panic of Rust code is no Exception
        watch.end()
        outcome = judge_error(error, folder)
    harm = watch.end()
    seconds, grown = _tree_seconds(os.getpid()) - started, max(0, _memory("VmHWM") - resident)
    after = listing(scratch)
    if harm is None:
        harm = _left_behind(before, after, job.surface)
    if harm is not None:
        outcome = Outcome(*harm)
    elif outcome.good and seconds > allowed.seconds:
        outcome = Outcome("slow", f"{seconds:.1f} s, then {outcome.kind}")
    elif outcome.good and grown > allowed.bytes:
        outcome = Outcome("memory", f"{grown:,} bytes, then {outcome.kind}")
    if outcome.good and before == after:
        place(folder / job.surface.file, Content((bases / job.surface.base / job.surface.file).read_bytes()))
    else:
        shutil.rmtree(folder)
    return Outcome(**{**asdict(outcome), "seconds": round(seconds, 4), "bytes": grown})


def _left_behind(before: dict[str, Any], after: dict[str, Any], surface: Surface) -> tuple[str, str] | None:
    for name in sorted(before.keys() | after.keys()):
        inner = name.removeprefix(f"{surface.base}/")
        if before.get(name) != after.get(name) and not (inner != name and inner.startswith(surface.writes or ("\0",))):
            return ("left behind" if name not in before else "changed a file"), name
    return None


class _Watch:
    """Hears what the process does with files, programs and the network while an input is read."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = os.path.realpath(scratch)
        self.outside = os.path.join(self.scratch, OUTSIDE)  # noqa: PTH118 (no new objects inside the hook)
        self.writes: tuple[str, ...] = ()
        self.folder, self.on = "", False
        self.harm: tuple[str, str] | None = None

    def begin(self, folder: Path, writes: tuple[str, ...]) -> None:
        self.folder, self.writes, self.harm, self.on = os.path.realpath(folder), writes, None, True

    def end(self) -> tuple[str, str] | None:
        self.on = False
        return self.harm

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on or self.harm is not None:
            return
        if event == "open":
            self._opened(arguments)
        elif event in _CHANGES:
            for place, start in _CHANGES[event]:
                self._changed(event, arguments[place], arguments[start] if start is not None else -1)
        elif event == "subprocess.Popen" and _is_worker(arguments):
            return
        elif event in _PROGRAMS:
            self.harm = ("ran a program", f"{event} {arguments[0]!r}"[:200])
        elif event in _NETWORK:
            self.harm = ("used the network", f"{event} {arguments[1:]!r}"[:200])

    def _opened(self, arguments: tuple[Any, ...]) -> None:
        path, mode, flags = arguments
        if not isinstance(path, str | bytes | os.PathLike):
            return
        if (isinstance(flags, int) and flags & _WRITES) or (isinstance(mode, str) and set(mode) & set("wax+")):
            self._changed("open", path)
            return
        real = self._real(path)
        if real.startswith((self.outside, "/etc/passwd", "/proc/self", "/dev/zero")) or real.startswith("/etc/shadow"):
            self.harm = ("read outside", real)

    def _changed(self, event: str, path: Any, start: int = -1) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        if start >= 0:
            path = os.path.join(os.readlink(f"/proc/self/fd/{start}"), os.fsdecode(path))  # noqa: PTH115, PTH118
        real = self._real(path)
        if real == os.devnull:
            return
        name = os.path.relpath(real, self.folder)
        if name.startswith("..") or not self.writes or not name.lstrip(".").startswith(self.writes):
            self.harm = ("wrote outside" if name.startswith("..") else "wrote", f"{event} {real}")

    def _real(self, path: Any) -> str:
        try:
            return os.path.realpath(os.fsdecode(path))
        except (OSError, ValueError):
            return ""


def _is_worker(arguments: tuple[Any, ...]) -> bool:
    """Whether a program that is started is a worker process of the package itself."""
    program, words = arguments[0], list(map(str, arguments[1]))
    return program == sys.executable and any(word.startswith("lfm2export.") for word in words)


def _memory(field: str) -> int:
    """Bytes of a line of /proc/self/status."""
    with open("/proc/self/status", encoding="ascii") as file:  # noqa: PTH123 (as little as can be while memory is short)
        for line in file:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return 0
