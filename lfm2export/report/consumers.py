"""The verdicts of real consumers, where `check-consumers` left them beside the artifact, as rows of the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lfm2export.consumers import FILE
from lfm2export.consumers.result import ConsumerReport, ConsumerResult, Verdict
from lfm2export.errors import ArtifactError
from lfm2export.untrusted.json_reader import read_object
from lfm2export.untrusted.paths import find_file
from lfm2export.untrusted.records import Mismatch, decode


@dataclass(frozen=True)
class ConsumerRow:
    """One file in one consumer. said: why it was not run, or how many checks passed and how close the logits came."""

    consumer: str
    version: str
    dtype: str
    device: str
    verdict: str
    said: str


def read_consumers(folder: Path) -> list[ConsumerRow]:
    """Rows of consumers.json in `folder`; none where no consumer was asked.

    Raises:
        ArtifactError: the file is damaged.
    """
    path = find_file(folder, FILE, ArtifactError)
    if path is None:
        return []
    remedy = "run check-consumers again, or remove it"
    try:
        report: ConsumerReport = decode(read_object(path, ArtifactError, remedy, folder=folder), ConsumerReport, FILE)
    except Mismatch as error:
        raise ArtifactError(f"{path} is damaged ({error}); {remedy}") from error
    return [_row(result) for result in report.results]


def _row(result: ConsumerResult) -> ConsumerRow:
    passed = sum(check.verdict is Verdict.PASSED for check in result.checks)
    said = result.reason or f"{passed} of {len(result.checks)} checks"
    if result.noise is not None:
        said += f", logits within {result.noise:.2g}"
    return ConsumerRow(
        consumer=result.consumer,
        version=result.version or "",
        dtype=result.dtype,
        device=result.device,
        verdict=result.verdict.value,
        said=said,
    )
