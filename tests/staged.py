"""Artifacts of four small files that all say the same word, for tests of how folders take each other's place."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

NAMES = ("README.md", "config.json", "onnx/model.onnx", "onnx/model.onnx_data")


def fill(folder: Path, mark: str) -> None:
    """An artifact of which every file says `mark`."""
    (folder / "onnx").mkdir(parents=True)
    for name in NAMES:
        (folder / name).write_text(mark)
    entry = {"bytes": len(mark), "sha256": sha256(mark.encode()).hexdigest()}
    manifest = {"schema_version": 1, "tool": {"name": "lfm2export"}, "mark": mark, "files": dict.fromkeys(NAMES, entry)}
    (folder / "build.json").write_text(json.dumps(manifest))


def marks(folder: Path) -> set[str]:
    """What the files of `folder` say; of whole artifacts, one word."""
    return {
        json.loads(path.read_text())["mark"] if path.name == "build.json" else path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
