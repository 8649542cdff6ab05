"""The formats that were chosen matrix by matrix for a target, from build.json, as rows of the report."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path

from lfm2export.errors import ArtifactError
from lfm2export.package.card import format_in_words
from lfm2export.package.manifest import FILE, read_manifest
from lfm2export.untrusted.paths import shown
from lfm2export.untrusted.records import Mismatch, decode

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
    try:
        found: _Formats = decode(manifest["formats"], _Formats, "formats")
        for row in found.matrices:
            if not _MATRIX.fullmatch(row.name) or row.parameters < 1:
                raise Mismatch(f"a matrix is called {shown(row.name)} and has {row.parameters} weights")
    except Mismatch as error:
        raise ArtifactError(f"{folder / FILE}: formats are damaged ({error}); build the artifact again") from error
    return FormatTable(
        target=f"{found.target.value:g} {found.target.unit}",
        text=found.text,
        tokens=found.tokens,
        kld=found.predicted_kld,
        rows=tuple(_row(row) for row in found.matrices),
    )


@dataclass(frozen=True)
class _Target:
    value: float
    unit: str


@dataclass(frozen=True)
class _Matrix:
    """A row of build.json."""

    name: str
    parameters: int
    bits: int
    block_size: int
    symmetric: bool
    bytes: int
    kld: float
    kld_4_bit: float


@dataclass(frozen=True)
class _Formats:
    """The entry of build.json."""

    target: _Target
    text: str
    tokens: int
    predicted_kld: float
    matrices: tuple[_Matrix, ...]


def _row(row: _Matrix) -> FormatRow:
    return FormatRow(
        matrix=row.name,
        parameters=row.parameters,
        before=row.kld_4_bit,
        bits=row.bits,
        format=format_in_words(asdict(row)),
        bytes=row.bytes,
        kld=row.kld,
    )
