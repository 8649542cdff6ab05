"""Entries that may be made again at any time, in the user's cache folder: read with suspicion, written where possible.

    $LFM2EXPORT_CACHE, else $XDG_CACHE_HOME/lfm2export, else the system's place for caches
      graphs/<key>.graph        sha256 of the rest, a line feed, the rest

A cache never fails a command: what cannot be read is not there, and what cannot be written is not kept. An entry is a
regular file of this user that nobody else may write; its name is a hash that the reader computed itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
import time
from pathlib import Path

from lfm2export.atomic import is_partial, write_atomically

#: Names the cache folder itself; empty is as if it were not set.
VARIABLE = "LFM2EXPORT_CACHE"
NAME = "lfm2export"

#: Bytes of one entry. The graph of 30 layers has half a million.
MAX_ENTRY_BYTES = 16 << 20
#: What is kept of one kind, the youngest first.
MAX_ENTRIES, MAX_BYTES = 32, 64 << 20

#: Seconds after which what a killed write left behind is nobody's.
STALE_SECONDS = 3600.0


def cache_folder(kind: str) -> Path | None:
    """Where entries of `kind` lie; None where this user has no such place. Nothing is created."""
    named = os.environ.get(VARIABLE)
    if named:
        try:
            return Path(named).absolute() / kind
        except OSError:  # relative to a working folder that is gone
            return None
    root = _system_folder()
    return root / NAME / kind if root is not None else None


def _system_folder() -> Path | None:
    stated = os.environ.get("XDG_CACHE_HOME", "")
    if Path(stated).is_absolute():  # a relative one is to be ignored, says its specification
        return Path(stated)
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local) if local else None
    try:
        home = Path.home()
    except RuntimeError:  # no HOME, and no such user
        return None
    return home / "Library" / "Caches" if sys.platform == "darwin" else home / ".cache"


def read_entry(path: Path) -> bytes | None:
    """What was kept at `path`; None: nothing that is whole, this user's, and nobody else's to write."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        with open(os.open(path, flags | getattr(os, "O_CLOEXEC", 0)), "rb") as file:  # noqa: PTH123
            if not _is_own(os.fstat(file.fileno())):
                return None
            data = file.read(MAX_ENTRY_BYTES + 1)
    except OSError:
        return None
    digest, _, content = data.partition(b"\n")
    if len(data) > MAX_ENTRY_BYTES or digest != _digest(content):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # the youngest are kept
    return content


def write_entry(path: Path, content: bytes) -> None:
    """Keep `content` at `path`, if that can be done, and let the oldest entries beside it go."""
    if len(content) + 65 > MAX_ENTRY_BYTES:
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, _digest(content) + b"\n" + content).chmod(0o600)
        _trim(path.parent, path.suffix)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def _is_own(found: os.stat_result) -> bool:
    mine = not hasattr(os, "geteuid") or found.st_uid == os.geteuid()
    return stat.S_ISREG(found.st_mode) and mine and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _trim(folder: Path, suffix: str) -> None:
    """Remove the oldest entries beyond the limits, and what killed writes left; other files stay."""
    entries: list[tuple[float, int, Path]] = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process may have removed it
            found = path.lstat()
            if not stat.S_ISREG(found.st_mode):
                continue
            if path.suffix == suffix:
                entries.append((found.st_mtime, found.st_size, path))
            elif is_partial(path.name) and time.time() - found.st_mtime > STALE_SECONDS:
                path.unlink()
    total = 0
    for number, (_, size, path) in enumerate(sorted(entries, reverse=True)):
        total += size
        if number >= MAX_ENTRIES or total > MAX_BYTES:
            with contextlib.suppress(OSError):
                path.unlink()
