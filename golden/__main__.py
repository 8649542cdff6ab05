"""`python -m golden check` and `python -m golden refresh`, in the root of the repository.

Exit code 0: as stored. 1: something differs. A refresh builds the shipped model and overwrites golden/*.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from golden import record
from lfm2export.pipeline import build
from lfm2export.recipes import RECIPES


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m golden", description=__doc__)
    parser.add_argument("action", choices=("check", "refresh"))
    parser.add_argument("--artifact", type=Path, help="a build of the shipped model, all dtypes; default: build one")
    parser.add_argument("--strict", action="store_true", help="other versions or other bytes of a file fail as well")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.artifact or build(None, dtypes=list(RECIPES), out=Path(scratch) / "artifact").folder
        if options.action == "refresh":
            return refresh(folder)
        return tell(*compare_all(folder), strict=options.strict)


def refresh(folder: Path) -> int:
    """Write every golden from the shipped checkpoint and its artifact in `folder`."""
    reference, _ = record.measure_reference()
    print(f"wrote {record.write(record.REFERENCE, reference).name}")
    for dtype in RECIPES:
        document, _ = record.measure_file(folder, dtype, reference["prompts"])
        print(f"wrote {record.write(dtype, document).name}")
    return 0


def tell(problems: list[str], notes: list[str], *, strict: bool = False) -> int:
    """Print what differs and how to refresh; the exit code."""
    for note in notes:
        print(f"note: {note}")
    failed = problems + notes if strict else problems
    for problem in failed:
        print(problem, file=sys.stderr)
    if failed:
        print(f"If the change is intended: {record.REFRESH}", file=sys.stderr)
    return 1 if failed else 0


def compare_all(folder: Path) -> tuple[list[str], list[str]]:
    """(problems, notes) of the reference and of every file in `folder`."""
    stored = record.read(record.REFERENCE)
    document, rows = record.measure_reference()
    problems = record.compare(record.REFERENCE, stored, document, rows)
    notes = record.notes(record.REFERENCE, stored, document)
    prompts = stored["prompts"] if stored else document["prompts"]
    for dtype in RECIPES:
        stored = record.read(dtype)
        document, rows = record.measure_file(folder, dtype, prompts)
        problems += record.compare(dtype, stored, document, rows)
        notes += record.notes(dtype, stored, document)
    return problems, notes


if __name__ == "__main__":
    sys.exit(main())
