"""The program `lfm2-export`, and `python -m lfm2export`: what a process owes its caller before click is imported."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from typing import Any, NoReturn

from lfm2export.exit_codes import ExitCode


def main() -> None:
    """Run the command line; a Ctrl-C ends quietly at whatever moment it comes, and SIGTERM unwinds as it does."""
    try:
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # whoever ignores it, wants it ignored
            signal.signal(signal.SIGTERM, _terminated)
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
        # What is left is the interpreter's own: a further signal ends that without a traceback.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _terminated(number: int, frame: Any) -> NoReturn:
    """Unwinds everything, as a Ctrl-C does, and no handler of a Ctrl-C takes it for one."""
    sys.exit(ExitCode.TERMINATED)


if __name__ == "__main__":
    main()
