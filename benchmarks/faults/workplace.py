"""A folder with an artifact to be replaced, and what must be true of it whatever happens to the build that does it."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.content import listing
from benchmarks.faults.launch import Ended
from benchmarks.faults.verdict import line_fault
from lfm2export.errors import Lfm2ExportError
from lfm2export.package.manifest import FILE, check_manifest

#: Files that are measured anew each time, and so differ between two builds of one source.
MEASURED = ("parity.json", "parity.md", "parity.html", "consumers.json")


#: The state of an artifact that is whole, and of no version that was expected.
NEITHER = "damaged: it is neither of the versions"


@dataclass(frozen=True)
class Workplace:
    """`out` in a folder of its own; `versions`: build.json's sha256 -> what that artifact is called here."""

    parent: Path
    versions: dict[str, str]

    @property
    def out(self) -> Path:
        return self.parent / "out"

    def put(self, artifact: Path) -> None:
        """Lay a copy of `artifact` into the output's place, and nothing else beside it."""
        shutil.rmtree(self.parent, ignore_errors=True)
        self.parent.mkdir(parents=True)
        shutil.copytree(artifact, self.out)

    def state(self) -> str:
        """The name of the version that lies there whole, "absent", or what is wrong with it."""
        if not self.out.exists():
            return "absent"
        return state_of(self.out, self.versions)

    def beside(self) -> list[str]:
        """What lies beside the output."""
        return sorted(path.name for path in self.parent.iterdir() if path != self.out)


def fingerprint(artifact: Path) -> str:
    """sha256 of build.json, which holds that of every other file."""
    return hashlib.sha256((artifact / FILE).read_bytes()).hexdigest()


def state_of(folder: Path, versions: dict[str, str]) -> str:
    """As :meth:`Workplace.state`, of a folder that is there."""
    try:
        problems = check_manifest(folder)
    except (Lfm2ExportError, OSError) as error:
        return f"damaged: {error}"
    if problems:
        return f"damaged: {problems[0]}"
    hidden = [name for name in listing(folder) if Path(name).name.startswith(".")]
    if hidden:
        return f"damaged: it holds {hidden[0]}"
    return versions.get(fingerprint(folder), NEITHER)


def end_fault(ended: Ended) -> str | None:
    """Why the end of a command is not one of those it may have: success, or exit code 2 with one line."""
    if ended.code == 0:
        return None
    if ended.code != 2:
        last = ended.error_lines[-1] if ended.error_lines else ended.stdout[-200:]
        return f"exit code {ended.code}: {last}"
    lines = [line for line in ended.error_lines if not line.startswith(PROGRESS)]
    if len(lines) != 1 or not lines[0].startswith("Error: "):
        return f"exit code 2 with {len(lines)} lines: {lines[:3]}"
    fault = line_fault(lines[0])
    return f"{fault}: {lines[0]!r}" if fault is not None else None


#: How lines of progress and notes begin; they are no errors.
PROGRESS = ("trace", "write ", "hash", "calibrat", "verify", "quantize", "Note", "q4", "tuning", "reference")
