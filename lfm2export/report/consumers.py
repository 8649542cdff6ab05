"""The verdicts of real consumers, where `check-consumers` left them beside the artifact, as rows of the report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfm2export.consumers import FILE
from lfm2export.errors import ArtifactError


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
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        results = json.loads(path.read_text(encoding="utf-8"))["results"]
        return [_row(result) for result in results]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); run check-consumers again, or remove it") from error


def _row(result: dict[str, Any]) -> ConsumerRow:
    passed = sum(check["verdict"] == "passed" for check in result["checks"])
    said = result["reason"] or f"{passed} of {len(result['checks'])} checks"
    if result["noise"] is not None:
        said += f", logits within {result['noise']:.2g}"
    return ConsumerRow(
        consumer=result["consumer"],
        version=result["version"] or "",
        dtype=result["dtype"],
        device=result["device"],
        verdict=result["verdict"],
        said=said,
    )
