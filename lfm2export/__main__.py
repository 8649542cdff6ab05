"""The program `lfm2-export`, and `python -m lfm2export`: what a process owes its caller before click is imported."""

from __future__ import annotations

import contextlib
import io
import sys

from lfm2export.exit_codes import ExitCode
from lfm2export.stopping import leave_signals, stop_on_signals


def main() -> None:
    """Run the command line; a Ctrl-C ends quietly at whatever moment it comes, and SIGTERM unwinds as it does."""
    try:
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


if __name__ == "__main__":
    main()
