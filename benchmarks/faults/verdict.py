"""What may come of one input, and whether it is harm."""

from __future__ import annotations

import traceback
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.locate import ROOT
from lfm2export.errors import Lfm2ExportError

PACKAGE = ROOT / "lfm2export"

#: Characters of a message without the folder that it names.
LONGEST_LINE = 700

#: Faults that a check of the campaign raises itself.
_KINDS = {"LateRefusalError": "late refusal", "LeakError": "leak", "LineError": "not one line"}

GOOD = ("success", "refusal")


@dataclass(frozen=True)
class Outcome:
    """kind: "success", "refusal", or what went wrong. error: name of the exception's class. where: file:line of the
    package. seconds: of the processors. bytes: how much the memory of the process grew at most."""

    kind: str
    message: str = ""
    error: str = ""
    where: str = ""
    seconds: float = 0.0
    bytes: int = 0

    @property
    def good(self) -> bool:
        return self.kind in GOOD

    @property
    def signature(self) -> tuple[str, str, str]:
        """What two outcomes of the same fault share."""
        return self.kind, self.error, self.where if self.kind in ("exception", "late refusal") else ""


def judge_error(error: BaseException, folder: Path) -> Outcome:
    """A refusal in one line, or what is wrong with it."""
    name, message = type(error).__name__, str(error)
    where = place_of(error.__cause__ if name == "LateRefusalError" and error.__cause__ else error)
    if not isinstance(error, Lfm2ExportError):
        kind = _KINDS.get(name, "exception")
        return Outcome(kind, ascii(message)[:300], name, where)
    fault = line_fault(message.replace(str(folder), ""))
    if fault is not None:
        return Outcome(fault, ascii(message)[:300], name, where)
    return Outcome("refusal", message[:300], name, where)


def line_fault(message: str, longest: int = LONGEST_LINE) -> str | None:
    """Why `message` is not one line that a terminal can show; None for one that is."""
    if not message.strip():
        return "empty message"
    if any(unicodedata.category(letter) in ("Cc", "Zl", "Zp", "Cs") for letter in message):
        return "not one line"
    if any(letter in "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069" for letter in message):
        return "turns the line's direction"
    return "long line" if len(message) > longest else None


def place_of(error: BaseException) -> str:
    """file:line of the innermost frame inside the package; the outermost cause counts, as a traceback ends."""
    found = ""
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.is_relative_to(PACKAGE):
            found = f"{path.relative_to(ROOT)}:{frame.lineno}"
    return found
