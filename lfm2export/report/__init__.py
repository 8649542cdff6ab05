"""The parity report: one verification as parity.json, parity.md, parity.html, the card's table, and JUnit XML.

None of these files is in the manifest, nor is the card's parity section, so an artifact's hashes stay valid.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lfm2export.atomic import write_atomically
from lfm2export.errors import ArtifactError, OutputError
from lfm2export.package.card import PARITY_BEGIN, fill_parity
from lfm2export.report import facts, junit, markdown, page
from lfm2export.report.consumers import read_consumers
from lfm2export.report.formats import read_formats
from lfm2export.untrusted.paths import find_file
from lfm2export.untrusted.text import MAX_TEXT_BYTES, read_bytes
from lfm2export.verify.document import read_parity, write_parity
from lfm2export.verify.results import Verification

CARD = "README.md"


@dataclass(frozen=True)
class Report:
    """What was written. card: None where the folder has no card of its own, or one without the place for the
    table."""

    json: Path
    markdown: Path
    html: Path
    card: Path | None
    junit: Path | None


def write_report(folder: Path, result: Verification, *, junit_file: Path | None = None) -> Report:
    """Write parity.json, .md and .html into `folder`, the table into its card, and the verdicts to `junit_file`.

    What `check-consumers` left in `folder` is shown as well, and the formats that the build chose for a target.

    Raises:
        OutputError: something cannot be written.
        ArtifactError: consumers.json or build.json is damaged.
    """
    asked, chosen = read_consumers(folder), read_formats(folder)
    try:
        written = write_parity(result, folder)
        result = read_parity(written)  # with as many digits as the file, so that rendering again gives the same bytes
        return Report(
            json=written,
            markdown=_write(folder / markdown.FILE, markdown.render(result, asked, chosen)),
            html=_write(folder / page.FILE, page.render(result, facts.read_sizes(folder), asked, chosen)),
            card=_fill_card(folder / CARD, markdown.render_card(result)),
            junit=junit.write_junit(junit_file, result) if junit_file is not None else None,
        )
    except OSError as error:
        raise OutputError(f"the report cannot be written: {error}; make {folder} writable") from error


def render_again(folder: Path, *, junit_file: Path | None = None) -> tuple[Verification, Report]:
    """The report of the parity.json in `folder`, written anew; what was measured stays as it is.

    Raises:
        ArtifactError: there is no parity.json, it is damaged, or of another schema.
        OutputError: something cannot be written.
    """
    result = read_parity(folder)
    return result, write_report(folder, result, junit_file=junit_file)


def _fill_card(path: Path, table: str) -> Path | None:
    """None for somebody else's card, and for one that leads out of the folder: nothing is copied from there."""
    try:
        found = find_file(path.parent, path.name, ArtifactError)
        if found is None:
            return None
        card = read_bytes(found, ArtifactError, MAX_TEXT_BYTES).decode("utf-8", "surrogateescape")
        if PARITY_BEGIN not in card:
            return None
        filled = fill_parity(card, table)
    except ArtifactError:
        return None
    return _write(path, filled)


def _write(path: Path, text: str) -> Path:
    return write_atomically(path, text.encode("utf-8", "surrogateescape"))
