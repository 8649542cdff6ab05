"""An artifact as the hub's cache holds it: every file is a link into blobs/."""

from __future__ import annotations

import os
import shutil
from hashlib import sha256
from pathlib import Path


def snapshot(artifact: Path, place: Path) -> Path:
    """Put `artifact` into a cache at `place`; returns the folder of its snapshot."""
    out = place / "snapshots" / "abc"
    (place / "blobs").mkdir(parents=True)
    for path in sorted(p for p in artifact.rglob("*") if p.is_file()):
        blob = place / "blobs" / sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blob)
        link = out / path.relative_to(artifact)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return out


def blobs(folder: Path) -> dict[str, str]:
    """Name and sha256 of every blob of the cache that the snapshot `folder` is in."""
    place = folder.parent.parent / "blobs"
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in place.iterdir()}
