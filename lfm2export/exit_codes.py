"""The exit codes, each of one meaning. README.md and ci/release.sh show this table, a test holds them to it."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ended. From 128 on it is a signal's number and 128, as shells have it."""

    GOOD = 0
    ARTIFACT_FAILED = 1
    BAD_INPUT = 2
    #: EX_SOFTWARE of sysexits.h.
    FAULT = 70
    INTERRUPTED = 130
    OUTPUT_CLOSED = 141
    TERMINATED = 143


MEANINGS = {
    ExitCode.GOOD: "good",
    ExitCode.ARTIFACT_FAILED: "the artifact failed: parity, a hash or the contract",
    ExitCode.BAD_INPUT: "bad input or usage, a full disk, a place that cannot be read or written, a hub that does not "
    "answer, or not enough memory",
    ExitCode.FAULT: "a fault of lfm2-export itself: the message says where to report it, --traceback shows where it is",
    ExitCode.INTERRUPTED: "interrupted (Ctrl-C)",
    ExitCode.OUTPUT_CLOSED: "what read its output went away, as head does",
    ExitCode.TERMINATED: "ended by SIGTERM, as a Ctrl-C would",
}
