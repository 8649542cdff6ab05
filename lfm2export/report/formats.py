"""The formats that were chosen matrix by matrix for a target, from build.json, as rows of the report."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfm2export.errors import ArtifactError
from lfm2export.package.card import format_in_words
from lfm2export.package.manifest import FILE, read_manifest
from lfm2export.untrusted.paths import shown

#: `model.layers.0.feed_forward.w1.weight+w3`
_MATRIX = re.compile(r"\w+(\.\w+)+(\+\w+)*", re.ASCII)


@dataclass(frozen=True)
class FormatRow:
    """One matrix. before: KLD in nats of the model with it alone in 4-bit blocks of 32; kld: in `format`."""

    matrix: str
    parameters: int
    before: float
    bits: int
    format: str
    bytes: int
    kld: float

    @property
    def pays(self) -> float:
        """What its 4-bit form loses, in nats a megabyte of it."""
        return self.before / (self.parameters * 4.625 / 8e6)


@dataclass(frozen=True)
class FormatTable:
    """target: as asked for. text, tokens: what the rows were measured on. kld: their sum, predicted for the file."""

    target: str
    text: str
    tokens: int
    kld: float
    rows: tuple[FormatRow, ...]


def read_formats(folder: Path) -> FormatTable | None:
    """The table of build.json in `folder`; None where formats follow the role of a matrix, or nothing tells.

    Raises:
        ArtifactError: the manifest is damaged.
    """
    manifest = read_manifest(folder)
    if manifest is None or "formats" not in manifest:
        return None
    found = manifest["formats"]
    try:
        return FormatTable(
            target=f"{found['target']['value']:g} {found['target']['unit']}",
            text=str(found["text"]),
            tokens=int(found["tokens"]),
            kld=float(found["predicted_kld"]),
            rows=tuple(_row(row) for row in found["matrices"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ArtifactError(f"{folder / FILE}: formats are damaged ({error!r}); build the artifact again") from error


def _row(row: dict[str, Any]) -> FormatRow:
    name, parameters = str(row["name"]), int(row["parameters"])
    if not _MATRIX.fullmatch(name) or parameters < 1:
        raise ValueError(f"a matrix is called {shown(name)} and has {parameters} weights")
    return FormatRow(
        matrix=name,
        parameters=parameters,
        before=float(row["kld_4_bit"]),
        bits=int(row["bits"]),
        format=format_in_words(row),
        bytes=int(row["bytes"]),
        kld=float(row["kld"]),
    )
