"""Ctrl-C and SIGTERM end the process even while a library computes.

Python's handlers run in the main thread between two instructions of the interpreter: not while onnxruntime is in a
stranger's loop without end. A thread therefore learns of each signal from a pipe, and ends the process where the
handler has not run :data:`GRACE` seconds later; what is left of a build is removed by the next one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from lfm2export.exit_codes import ExitCode

#: Seconds that the main thread may take to begin to unwind.
GRACE = 10.0
#: Seconds that a SIGTERM's unwinding may take in all: the piece that a worker is at is finished first.
UNWINDING = 60.0
#: A signal that comes again within so many seconds is the same one: `timeout` sends it to the process and to its group.
SAME = 1.0

_CODES = {signal.SIGINT: ExitCode.INTERRUPTED, signal.SIGTERM: ExitCode.TERMINATED}

#: Signal -> when its handler last ran.
_ran: dict[int, float] = {}


def stop_on_signals() -> None:
    """Install the handlers, unless somebody wants a signal ignored: Ctrl-C raises KeyboardInterrupt, SIGTERM exits."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminated)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
    with contextlib.suppress(AttributeError, OSError, ValueError):  # a system without such pipes has the handlers alone
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=_watch, args=(read,), name="signals", daemon=True).start()


def leave_signals() -> None:
    """What is left is the interpreter's own: a further signal ends that without a traceback."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _interrupted(number: int, frame: Any) -> NoReturn:
    _ran[number] = time.monotonic()
    raise KeyboardInterrupt


def _terminated(number: int, frame: Any) -> NoReturn:
    """Unwinds everything, as a Ctrl-C does, and no handler of a Ctrl-C takes it for one."""
    _ran[number] = time.monotonic()
    _later(UNWINDING, number, None)
    raise SystemExit(ExitCode.TERMINATED)


def _watch(read: int) -> None:
    """The thread: a byte for each signal that came, perhaps read when its handler has run already."""
    came: dict[int, float] = {}
    while True:
        (number,) = os.read(read, 1)
        if number not in _CODES:
            continue
        now = time.monotonic()
        if number not in came or _noticed(number, came[number]):
            came[number] = now
            _later(GRACE, number, now)
        elif now - came[number] > SAME:
            _end(number)


def _noticed(number: int, came: float) -> bool:
    return number in _ran and _ran[number] > came - SAME


def _later(seconds: float, number: int, came: float | None) -> None:
    """End the process in `seconds`; with `came`, unless the handler of the signal that came then has run."""
    timer = threading.Timer(seconds, _end_unless_noticed, (number, came))
    timer.daemon = True
    timer.start()


def _end_unless_noticed(number: int, came: float | None) -> None:
    if came is None or not _noticed(number, came):
        _end(number)


def _end(number: int) -> NoReturn:
    """End this process and what it started, now."""
    for task in Path("/proc/self/task").glob("*/children"):  # Linux; elsewhere they end as their pipes do
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                _kill(child)
    if number == signal.SIGINT:
        with contextlib.suppress(OSError):
            os.write(2, b"Interrupted.\n")
    os._exit(_CODES[signal.Signals(number)])


def _kill(child: int) -> None:
    """A worker of a session of its own goes with what it started."""
    with contextlib.suppress(OSError):
        if os.getpgid(child) == child:
            os.killpg(child, signal.SIGKILL)
        os.kill(child, signal.SIGKILL)
