"""The program `lfm2-export`, and `python -m lfm2export`: what a process owes its caller before click is imported."""

from __future__ import annotations

import contextlib
import io
import os
import sys

from lfm2export.exit_codes import ExitCode
from lfm2export.stopping import leave_signals, stop_on_signals


def main() -> None:
    """Run the command line; a Ctrl-C ends quietly at whatever moment it comes, and SIGTERM unwinds as it does."""
    try:
        _open_missing_streams()
        stop_on_signals()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # an ASCII terminal, or a file name that is not UTF-8
                stream.reconfigure(errors="backslashreplace")
        from lfm2export.cli import main as command

        command()
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            print("Interrupted.", file=sys.stderr)
        sys.exit(ExitCode.INTERRUPTED)
    finally:
        leave_signals()


def _open_missing_streams() -> None:
    """A standard stream that the caller closed is empty, or leads nowhere, as the null device does.

    Otherwise the next file that is opened takes its number, and what a library writes to stderr goes into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free, so this one
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115


if __name__ == "__main__":
    main()
