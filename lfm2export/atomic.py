"""Files that are the old one or the new one, whole, and on the disk before anything they replace goes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

#: `.NAME.<8 hexadecimal digits>.lfm2export.partial`: what a write that was killed leaves beside NAME.
_PARTIAL = re.compile(r"\..+\.[0-9a-f]{8}\.lfm2export\.partial", re.DOTALL)

#: Files that are flushed at a time: the system then writes one while another waits for the disk's answer.
FLUSHED_AT_ONCE = 8


def write_atomically(path: Path, data: bytes) -> Path:
    """Make `path` a file that holds `data`, in one step; returns it.

    A link at `path` is replaced, never followed: in a snapshot of the hub's cache that leaves the blob as it is.

    Raises:
        OSError: it cannot be written; what was there is unchanged.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.lfm2export.partial")
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def is_partial(name: str) -> bool:
    """Whether `name` is of a file that :func:`write_atomically` had not finished."""
    return _PARTIAL.fullmatch(name) is not None


def remove_partials(folder: Path) -> None:
    """Remove what killed writes left in `folder`. Only while no other process writes there."""
    with contextlib.suppress(OSError):  # a folder that may not be written: they harm nobody
        for path in folder.iterdir():
            if is_partial(path.name) and path.is_file() and not path.is_symlink():
                path.unlink()


def exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step (Linux renameat2 with RENAME_EXCHANGE); False where that is not to be had."""
    if sys.platform != "linux":
        return False
    at_current_folder, exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    arguments = (at_current_folder, os.fsencode(first), at_current_folder, os.fsencode(second), ctypes.c_uint(exchange))
    return int(renameat2(*arguments)) == 0


def flush_tree(folder: Path) -> None:
    """Return when every file and folder below `folder`, itself too, is on the disk.

    Raises:
        OSError: the disk did not take a file.
    """
    files: list[Path] = []
    folders: list[Path] = []
    for parent, _, names in os.walk(folder):
        folders.append(Path(parent))
        files += [path for path in (Path(parent) / name for name in names) if not path.is_symlink()]
    with ThreadPoolExecutor(FLUSHED_AT_ONCE, thread_name_prefix="lfm2export-flush") as threads:
        for _ in threads.map(flush_file, files):
            pass
    for written in folders:
        flush_folder(written)


def flush_file(path: Path) -> None:
    """Return when the file's bytes are on the disk.

    Raises:
        OSError: the disk did not take them; it names the file.
    """
    with path.open("rb") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error


def flush_folder(folder: Path) -> None:
    """The same for the names in `folder`, where the system can do that."""
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):  # some file systems refuse to flush a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
