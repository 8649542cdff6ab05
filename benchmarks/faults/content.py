"""What lies in the place of a file: bytes, or something else that has its name."""

from __future__ import annotations

import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["file", "missing", "folder", "pipe", "socket", "link"]


@dataclass(frozen=True)
class Content:
    """`data` of a file, or `target` of a link; neither of anything else."""

    data: bytes = b""
    kind: Kind = "file"
    target: str = ""

    def shown(self, limit: int = 400) -> str:
        """The content for a report: a text as it is where it is short and printable, else its size."""
        if self.kind != "file":
            return f"a {self.kind} to {self.target}" if self.kind == "link" else self.kind
        if len(self.data) <= limit:
            try:
                return ascii(self.data.decode("utf-8"))
            except UnicodeDecodeError:
                return repr(self.data)
        return f"{len(self.data):,} bytes"


def place(path: Path, content: Content) -> None:
    """Put `content` at `path` in place of what is there; its folder is created where it is missing."""
    remove(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if content.kind == "file":
        path.write_bytes(content.data)
    elif content.kind == "folder":
        path.mkdir()
    elif content.kind == "pipe":
        os.mkfifo(path)
    elif content.kind == "link":
        path.symlink_to(content.target)
    elif content.kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))


def remove(path: Path) -> None:
    """Whatever is at `path`; a link goes, not its target."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def listing(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Every entry below `folder`: mode, size and time of change; what differs between two was touched in between."""
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent) / name
            entry = path.lstat()
            is_folder = path.is_dir() and not path.is_symlink()
            found[str(path.relative_to(folder))] = (
                entry.st_mode,
                0 if is_folder else entry.st_size,
                0 if is_folder else entry.st_mtime_ns,
            )
    return found
