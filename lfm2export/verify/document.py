"""parity.json: the records of `verify.results` as JSON values, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from lfm2export.atomic import write_atomically
from lfm2export.errors import ArtifactError
from lfm2export.untrusted.json_reader import read_object
from lfm2export.untrusted.paths import shown
from lfm2export.untrusted.records import INFINITY, Mismatch, decode
from lfm2export.verify.results import SCHEMA_VERSION, FileResult, Verification

FILE = "parity.json"

#: Bytes of a record: five files of 2.6B with a long text take 4 MB.
MAX_BYTES = 64 << 20

#: Significant digits: what is measured is float32, of which no figure is known better. All digits double the file.
DIGITS = 7

#: A record of at most so many characters is one line.
LINE = 320


def encode(value: Any) -> Any:
    """Records to dictionaries, tuples to lists, what is not finite to a string; verdicts of files and all are added."""
    if is_dataclass(value) and not isinstance(value, type):
        found = {field.name: encode(getattr(value, field.name)) for field in fields(value)}
        if isinstance(value, FileResult | Verification):
            found = {"verdict": value.verdict.value, **found}
        return found
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else INFINITY
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    return value


def write_parity(result: Verification, folder: Path) -> Path:
    """Write `folder`/parity.json, in one step."""
    return write_atomically(folder / FILE, (_laid_out(encode(result), "\n") + "\n").encode())


def _laid_out(value: Any, line: str) -> str:
    """JSON with short records and lists of numbers on a line each; `line` begins a line of this depth."""
    flat = json.dumps(value, ensure_ascii=False, allow_nan=False)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if len(flat) <= LINE or not any(isinstance(part, dict | list) for part in parts):
        return flat
    deeper = f"{line} "
    if isinstance(value, dict):
        inner = [f"{json.dumps(key, ensure_ascii=False)}: {_laid_out(item, deeper)}" for key, item in value.items()]
        return "{" + ",".join(deeper + text for text in inner) + line + "}"
    return "[" + ",".join(deeper + _laid_out(item, deeper) for item in value) + line + "]"


def read_parity(path: Path) -> Verification:
    """The verification that `path` (parity.json, or the folder that holds it) records.

    Raises:
        ArtifactError: there is none, it is damaged, or of a schema that this version does not know.
    """
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist; run lfm2-export verify on the folder first")
    remedy = "verify the folder again"
    document = read_object(path, ArtifactError, remedy, limit=MAX_BYTES)
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ArtifactError(f"{path} has the schema {shown(version)}, expected {SCHEMA_VERSION}; {remedy}")
    try:
        result: Verification = decode(document, Verification, "parity")
    except Mismatch as error:
        raise ArtifactError(f"{path} is damaged ({error}); {remedy}") from error
    return result
