"""Measuring, writing, reading and comparing the golden files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from golden.structure import structure
from golden.values import Rows, differences, forced, greedy, highest, prompt_tokens
from lfm2export.artifact import find_model
from lfm2export.hub import shipped_folder
from lfm2export.reference import load_reference
from lfm2export.runtime import OnnxModel

SCHEMA_VERSION = 1
FOLDER = Path(__file__).parent
REFERENCE = "reference"
REFRESH = "python -m golden refresh"
LIBRARIES = ("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "torch", "transformers")


def measure_reference() -> tuple[dict[str, Any], dict[str, Rows]]:
    """PyTorch on the shipped checkpoint: the document of reference.json, and all its logits by prompt."""
    model = load_reference(shipped_folder(), "memory")
    prompts: dict[str, Any] = {}
    rows: dict[str, Rows] = {}
    for name, tokens in prompt_tokens(shipped_folder()).items():
        answer, rows[name] = greedy(model, tokens)
        prompts[name] = {"tokens": tokens, "answer": answer}
    return {**_head(REFERENCE), "prompts": prompts, "logits": _highest(rows)}, rows


def measure_file(folder: Path, dtype: str, prompts: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Rows]]:
    """One file of an artifact of the shipped model: its document, and all its logits by prompt."""
    path = find_model(folder, dtype)
    model = OnnxModel(folder, dtype)
    rows = {name: forced(model, found["tokens"], found["answer"]) for name, found in prompts.items()}
    data = sorted(path.parent.glob(f"{path.name}_data*"))
    document = {
        **_head(dtype),
        "graph": structure(path),
        "files": {file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in (path, *data)},
        "logits": _highest(rows),
    }
    return document, rows


def read(name: str) -> dict[str, Any] | None:
    """golden/<name>.json, or None where there is none."""
    path = FOLDER / f"{name}.json"
    found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return found


def write(name: str, document: Mapping[str, Any]) -> Path:
    path = FOLDER / f"{name}.json"
    text = json.dumps(document, indent=1, ensure_ascii=False)
    path.write_text(_short_lists(text) + "\n", encoding="utf-8")
    return path


def compare(
    name: str, stored: Mapping[str, Any] | None, document: Mapping[str, Any], rows: Mapping[str, Rows]
) -> list[str]:
    """Every difference from the golden, a line each. Hashes of files are :func:`notes`."""
    if stored is None or stored.get("schema_version") != SCHEMA_VERSION:
        return [f"{name}: golden/{name}.json is missing or of another schema"]
    problems = []
    if stored["source"] != document["source"]:
        problems.append(f"{name}: the shipped model is another one than the golden's")
    for prompt, found in stored.get("prompts", {}).items():
        if found["tokens"] != document["prompts"].get(prompt, {}).get("tokens"):
            problems.append(f"{name}: prompt {prompt!r} is tokenized otherwise, or is another text")
    problems += _graph_differences(name, stored.get("graph", {}), document.get("graph", {}))
    return problems + differences(name, stored["logits"], rows)


def notes(name: str, stored: Mapping[str, Any] | None, document: Mapping[str, Any]) -> list[str]:
    """What may differ between machines and releases: versions, and the bytes of files."""
    if stored is None:
        return []
    found = [
        f"{name}: {library} is {document['versions'].get(library)}, the golden was made with {version}"
        for library, version in stored["versions"].items()
        if document["versions"].get(library) != version
    ]
    for file, facts in stored.get("files", {}).items():
        if document["files"].get(file) != facts:
            found.append(f"{name}: {file} has other bytes than the golden's")
    return found


def _graph_differences(name: str, stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    counts, other = stored.get("op_counts", {}), now.get("op_counts", {})
    found = [
        f"{name}: {other.get(op, 0)} {op} nodes, the golden has {counts.get(op, 0)}"
        for op in sorted({*counts, *other})
        if counts.get(op, 0) != other.get(op, 0)
    ]
    found += [
        f"{name}: {key} is {now.get(key)}, the golden has {stored[key]}"
        for key in ("opsets", "ir_version")
        if key in stored and stored[key] != now.get(key)
    ]
    if not found and stored.get("digest") != now.get("digest"):
        found.append(f"{name}: the same operators are wired otherwise than in the golden (digest)")
    return found


def _head(name: str) -> dict[str, Any]:
    weights = shipped_folder() / "model.safetensors"
    return {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "source": {weights.name: _sha256(weights)},
        "versions": {library: metadata.version(library).split("+")[0] for library in LIBRARIES},
    }


def _highest(rows: Mapping[str, Rows]) -> dict[str, list[str]]:
    return {name: highest(found) for name, found in rows.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _short_lists(text: str) -> str:
    """Lists of numbers on one line each."""
    return re.sub(r"\[\s+([\d\s,]+?)\s+\]", lambda found: "[" + re.sub(r"\s+", " ", found.group(1)) + "]", text)
