"""The command line in processes that are forked from this one, which has imported and traced everything once.

Each is a process group and a session of its own, as a shell would make it; what it prints goes to files, and where it
is in a build comes over a pipe as it happens, so that a kill can be aimed.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

#: Where a build is, by the function that does it: (module, function, stage).
STAGES = (
    ("lfm2export.ahead", "quantized_ahead", "prefetch"),
    ("lfm2export.pipeline", "fused_graph", "trace"),
    ("lfm2export.pipeline", "_calibrated", "calibration"),
    ("lfm2export.writer", "write_model", "writing"),
    ("lfm2export.package", "write_package", "packaging"),
    ("lfm2export.verify.run", "verify_artifact", "verification"),
    ("lfm2export.report", "write_report", "report"),
    ("lfm2export.staging", "flush_tree", "flush"),
    ("lfm2export.staging", "_move", "exchange"),
)

#: A user that may change nothing of ours ("nobody").
NOBODY = 65534


@dataclass(frozen=True)
class Ended:
    """What a command left: exit code (negative: the signal), what it printed, its stages as (name, begin, end) in
    seconds since the start."""

    code: int
    stdout: str
    stderr: str
    seconds: float
    stages: tuple[tuple[str, float, float], ...] = ()

    @property
    def error_lines(self) -> list[str]:
        """The lines of stderr that report an error."""
        return [line for line in self.stderr.splitlines() if line.strip()]


@dataclass
class Running:
    """A command that runs. `heard` are the marks so far: (stage, "begin" or "end", seconds)."""

    pid: int
    pipe: int
    folder: Path
    started: float
    heard: list[tuple[str, str, float]] = field(default_factory=list)
    status: int | None = None
    pending: bytes = b""

    def wait_for(self, stage: str, timeout: float) -> bool:
        """Whether the command came to `stage` within `timeout` seconds, before it ended."""
        until = time.monotonic() + timeout
        while not any(name == stage and what == "begin" for name, what, _ in self.heard):
            left = until - time.monotonic()
            if left <= 0 or not self._hear(left):
                return False
        return True

    def kill(self, group: bool) -> None:
        """SIGKILL to the process, or to all of its group."""
        with contextlib.suppress(ProcessLookupError):
            if group:
                os.killpg(self.pid, signal.SIGKILL)
            else:
                os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float = 60.0) -> Ended:
        """The end of the command; a command that takes longer is killed, and its code is that signal's."""
        until = time.monotonic() + timeout
        while self._hear(max(0.0, until - time.monotonic())):
            if time.monotonic() >= until:
                self.kill(group=True)
        _, status = os.waitpid(self.pid, 0)
        seconds = time.monotonic() - self.started
        os.close(self.pipe)
        begins = {name: at for name, what, at in reversed(self.heard) if what == "begin"}
        ends = {name: at for name, what, at in self.heard if what == "end"}
        return Ended(
            os.waitstatus_to_exitcode(status),
            (self.folder / "stdout").read_text(encoding="utf-8", errors="replace"),
            (self.folder / "stderr").read_text(encoding="utf-8", errors="replace"),
            seconds,
            tuple((name, at, ends.get(name, seconds)) for name, at in begins.items()),
        )

    def _hear(self, timeout: float) -> bool:
        """Take in marks for a moment; False once the command has ended."""
        if not select.select([self.pipe], [], [], min(timeout, 0.5))[0]:
            return True
        data = os.read(self.pipe, 1 << 12)
        if not data:
            return False
        *lines, self.pending = (self.pending + data).split(b"\n")
        for line in lines:
            name, what = line.decode().split()
            self.heard.append((name, what, time.monotonic() - self.started))
        return True


@dataclass(frozen=True)
class Limits:
    """file_bytes: the largest file that may be written. user: who runs it, None as we do."""

    file_bytes: int | None = None
    user: int | None = None


def warm(checkpoint: Path, *, calibrated: bool) -> None:
    """Import everything and build once, in this process, on one thread: what is forked afterwards starts at once."""
    import torch

    import lfm2export.commands

    del lfm2export
    torch.set_num_threads(1)
    _remember_traces()
    with tempfile.TemporaryDirectory(prefix="faults-warm-") as folder:
        out = Path(folder) / "out"
        for options in ([], ["--force", "--calibrate", "--calibration-tokens", "1024"])[: 1 + calibrated]:
            code = _call(
                ["build", str(checkpoint), "-o", str(out), "--threads", "1", "--quiet", "--no-cache", *options]
            )
            if code != 0:
                raise RuntimeError(f"the sound checkpoint does not build: exit code {code}")


def _remember_traces() -> None:
    """Trace a spec once; processes forked later have its graph already, but for those told to :func:`trace_anew`."""
    from lfm2export import pipeline

    def fused_graph(spec: Any, logits: Any) -> Any:
        if (spec, logits) not in _traced:
            _traced[spec, logits] = _trace(spec, logits)
        return _traced[spec, logits]

    _trace = pipeline.fused_graph
    pipeline.fused_graph = fused_graph


_traced: dict[Any, Any] = {}


def is_warm() -> bool:
    """Whether :func:`warm` was called."""
    return bool(_traced)


def trace_anew() -> None:
    """Forget what was traced."""
    _traced.clear()


def start(
    arguments: Sequence[str], folder: Path, limits: Limits | None = None, prepare: Callable[[], object] | None = None
) -> Running:
    """Run `lfm2-export ARGUMENTS` in a process of its own; `folder` takes what it prints. prepare: is called in it."""
    folder.mkdir(parents=True, exist_ok=True)
    back, write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _child(arguments, folder, write, limits or Limits(), prepare)
    os.close(write)
    return Running(pid, back, folder, time.monotonic())


def orphans(session: int) -> list[int]:
    """Processes that still run in the session of a command that has ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] != "Z":
                    found.append(int(entry.name))
    return found


def survivors(session: int, seconds: float = 5.0) -> list[int]:
    """As :func:`orphans`, of those that do not end within `seconds`."""
    until = time.monotonic() + seconds
    while found := orphans(session):
        if time.monotonic() > until:
            return found
        time.sleep(0.02)
    return []


def _child(
    arguments: Sequence[str], folder: Path, pipe: int, limits: Limits, prepare: Callable[[], object] | None
) -> NoReturn:
    code = 70
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if limits.file_bytes is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file_bytes, limits.file_bytes))
        if limits.user is not None:
            os.environ["HOME"] = str(folder)
            os.setgid(limits.user)
            os.setuid(limits.user)
        _announce(pipe)
        if prepare is not None:
            prepare()
        code = _call(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _call(arguments: Sequence[str]) -> int:
    """The command, as `lfm2-export` runs it; its exit code."""
    from lfm2export.__main__ import main

    before = sys.argv, signal.getsignal(signal.SIGINT)
    sys.argv = ["lfm2-export", *arguments]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.argv = before[0]
        signal.signal(signal.SIGINT, before[1])
    return 0


def _announce(pipe: int) -> None:
    """Have the functions of :data:`STAGES` say when they begin and end."""
    for module_name, function, stage in STAGES:
        module = importlib.import_module(module_name)
        setattr(module, function, _announced(getattr(module, function), pipe, stage))


def _announced(function: Any, pipe: int, stage: str) -> Any:
    def run(*arguments: Any, **options: Any) -> Any:
        os.write(pipe, f"{stage} begin\n".encode())
        try:
            return function(*arguments, **options)
        finally:
            os.write(pipe, f"{stage} end\n".encode())

    return run
