"""Snapshots of what commands print. Figures that differ between runs are replaced by the patterns below, by no others:
sizes in bytes, shapes, counts and verdicts stand as they are.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from command_line import Ran
from lfm2export import __version__

FOLDER = Path(__file__).parent / "snapshots"
REFRESH = "python -m pytest tests/cli --refresh-snapshots"

#: What differs from run to run or from machine to machine, and what stands for it.
VARYING = (
    (r"\b\d+\.\d s\b", "SECONDS"),
    (r"(?m)^((?:[^\n:]+: )+)[\d.,]+(?: million)? of ([\d.,]+(?: million)? [^,\n]+)(?:, .*)?$", r"\1… of \2"),
    (r"[\d,]+\.\d tokens/s", "RATE"),
    (rf"version {re.escape(__version__)}", "version VERSION"),
    (r"\bseed \d+\]", "seed SEED]"),
    (r"logits within [\d.e+-]+", "logits within FIGURE"),
    (r"KLD ([\d.e+-]+\d)", "KLD FIGURE"),
    (r"(?m)from [\d.]+ to [\d.]+$", "from FIGURE to FIGURE"),
    (r"(calibrated on [^\n:]*: )[^;\n]*", r"\1METHODS"),
    (r"outputs \d+ % of before", "outputs SHARE of before"),
    (r"(?m)^\| onnxruntime/card \| [\d.]+ ", "| onnxruntime/card | VERSION "),
    (r" is \d\.\d+e[+-]\d+", " is FIGURE"),
)

#: bench: each figure with its spread, in a table whose columns are as wide as they are.
MEASURED = (
    (r"[\d,]+\.\d+(?: s)? \([\d,]+\.\d+ to [\d,]+\.\d+\)", "FIGURE"),
    (r"[\d.]+ MB resident then, [\d.]+ times the file", "RESIDENT"),
    (r"\d+%", "SHARE"),
    (r"[\d,]+\.\d, [\d,]+\.\d ", "PEAKS "),
    (r"(?m)^.*; \d+ threads; memory reads [\d.]+ GB/s", "MACHINE"),
    (r"[━─]+", "─"),
    (r" {2,}", " "),
)


@dataclass(frozen=True)
class Snapshots:
    """Compares, or, where `refresh` is set, writes."""

    refresh: bool

    def check(self, name: str, *ran: Ran, measured: bool = False) -> None:
        """Hold what `ran` printed against `snapshots/NAME.txt`."""
        path = FOLDER / f"{name}.txt"
        got = "\n".join(_described(one, measured) for one in ran)
        if self.refresh:
            path.write_text(got, encoding="utf-8")
        wanted = path.read_text(encoding="utf-8") if path.is_file() else ""
        if got != wanted:
            changes = difflib.unified_diff(wanted.splitlines(), got.splitlines(), str(path), "printed", lineterm="")
            raise AssertionError("\n".join([*changes, f"if that is as it should be: {REFRESH}"]))


def _described(ran: Ran, measured: bool) -> str:
    parts = [f"$ lfm2-export {' '.join(ran.arguments)}", f"exit code {ran.code}"]
    for name, text in (("stdout", ran.stdout), ("stderr", ran.stderr)):
        if text:
            parts += [f"--- {name}", _normal(text, measured)]
    return "\n".join(parts) + "\n"


def _normal(text: str, measured: bool) -> str:
    for pattern, words in (*VARYING, *(MEASURED if measured else ())):
        text = re.sub(pattern, words, text)
    lines: list[str] = []
    for line in text.rstrip("\n").split("\n"):
        line = line.rstrip()
        if not ("… of " in line and line in lines):  # a stage's beginning and its end
            lines.append(line)
    return "\n".join(lines)
