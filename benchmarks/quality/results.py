"""The figures of one run, and their JSON. A figure that was not measured is null, and says why."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lfm2export.measures import Mean
from lfm2export.verify.figures import TextMeasures

SCHEMA_VERSION = 1

Column = Literal["prefill", "decode", "float"]

#: prefill, decode: the file as it is, by either route. float: the file's weights alone, with float32 activations.
COLUMNS: tuple[Column, ...] = ("prefill", "decode", "float")


@dataclass(frozen=True)
class Figures:
    """One file by one column. kld in nats: mean and standard error over chunks; chunk_kld: each chunk's.

    same_top: the share of positions where both prefer the same token, 0 to 1.
    """

    kld: Mean
    same_top: float
    perplexity: float
    chunk_kld: tuple[float, ...]

    @classmethod
    def of(cls, found: TextMeasures) -> Figures:
        return cls(found.kld, found.same_top, found.perplexity, tuple(float(f"{kld:.5g}") for kld in found.chunk_kld))


@dataclass(frozen=True)
class Row:
    """One method. weight_bytes: what its file spends on weights. digest: SHA-256 of the file.

    columns: None where not measured; `reason` says why.
    """

    name: str
    family: str
    how: str
    weight_bytes: int | None
    digest: str | None
    columns: Mapping[Column, Figures | None]
    reason: str | None = None


@dataclass(frozen=True)
class Results:
    """One run over one checkpoint and one text; every row on the same chunks.

    task: SHA-256 of what every row was compared with: the chunks, and the reference's logits on them. chunks,
    positions: of prefill; decode_chunks: those of them that were scored by decode too.
    """

    machine: str
    versions: Mapping[str, str]
    checkpoint: str
    parameters: int
    text: str
    task: str
    chunks: int
    decode_chunks: int
    positions: int
    reference_perplexity: float
    baseline: str
    rows: Sequence[Row]

    def row(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.name == name), None)

    def bits_per_weight(self, row: Row) -> float | None:
        return None if row.weight_bytes is None else 8 * row.weight_bytes / self.parameters

    def ratio(self, name: str, against: str, column: Column = "prefill") -> Mean | None:
        """KLD of `name` over that of `against`, paired by chunk; None where either was not measured."""
        first, second = self.row(name), self.row(against)
        mine = first.columns[column] if first is not None else None
        theirs = second.columns[column] if second is not None else None
        return ratio_of_means(mine.chunk_kld, theirs.chunk_kld) if mine is not None and theirs is not None else None


def ratio_of_means(values: Sequence[float], base: Sequence[float]) -> Mean:
    """mean(values) / mean(base) over the same chunks, with its standard error.

    By the delta method: the residuals values - r * base have mean 0, and their standard error over mean(base) is that
    of r to first order (Cochran, Sampling Techniques, 1977, section 6.3).

    Raises:
        ValueError: the two have different lengths.
    """
    first, second = np.asarray(values, np.float64), np.asarray(base, np.float64)
    if first.shape != second.shape:
        raise ValueError(f"{first.size} and {second.size} chunks cannot be paired")
    if not first.size or not second.mean():
        return Mean(None, None, int(first.size))
    ratio = float(first.mean() / second.mean())
    if first.size == 1:
        return Mean(ratio, None, 1)
    error = float((first - ratio * second).std(ddof=1) / np.sqrt(first.size) / second.mean())
    return Mean(ratio, error, int(first.size))


def write_results(results: Results, path: Path) -> None:
    document = {"schema_version": SCHEMA_VERSION, **asdict(results)}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def read_results(path: Path) -> Results:
    """What :func:`write_results` wrote.

    Raises:
        ValueError: another schema version.
    """
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    version = document.pop("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(f"{path} has schema version {version}, expected {SCHEMA_VERSION}; run the benchmark again")
    rows = [_row(row) for row in document.pop("rows")]
    return Results(**document, rows=rows)


def _row(document: dict[str, Any]) -> Row:
    columns = {name: figures_of(found) for name, found in document.pop("columns").items()}
    return Row(**document, columns=columns)


def figures_of(document: dict[str, Any] | None) -> Figures | None:
    """Figures from their JSON."""
    if document is None:
        return None
    rest = {key: value for key, value in document.items() if key not in ("kld", "chunk_kld")}
    return Figures(Mean(**document["kld"]), chunk_kld=tuple(document["chunk_kld"]), **rest)
