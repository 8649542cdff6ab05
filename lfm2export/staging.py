"""The output folder appears whole or not at all: it is written beside its place, then renamed into it.

    .NAME.1f3a9c02.partial/   being written, locked by its writer
    NAME/                     the finished folder: the old one until the rename, the new one after it

A folder that exists is exchanged for the new one in a single system call where the kernel has it (Linux renameat2), so
a kill at any moment leaves the old folder or the new one. Elsewhere there are two renames; a kill between them leaves
the old one as `.NAME.*.old`, which the next build puts back. What a killed build left behind, the next one removes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from lfm2export.errors import OutputError

#: Files up to this size are flushed to the disk before the rename: configs, tokenizer, graphs. Flushing larger ones
#: would take as long as writing them; the manifest's hashes tell whether a power failure damaged one.
FLUSHED_BYTES = 8 << 20

#: errno values that mean "this disk", whatever file the failing call named.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
_ACCESS = {errno.EACCES, errno.EPERM}


@contextlib.contextmanager
def staged_output(out: Path, *, force: bool, source: Path | None = None) -> Iterator[Path]:
    """Yield an empty folder to write into; when the block ends well it becomes `out`, in one step.

    When it raises (KeyboardInterrupt too), the staging folder and any parents made for it go and `out` is as before.

    Args:
        force: replace `out` if it is an artifact of this tool, or empty.
        source: the checkpoint that is read meanwhile; `out` may neither contain it nor lie inside it.

    Raises:
        OutputError: before the block, `out` cannot be used; during it, the disk is full or read-only.
    """
    check_output(out, force=force, source=source)
    out = _place(out)
    made: list[Path] = []
    lock: int | None = None
    staging: Path | None = None
    done = False
    try:
        _make_parents(out.parent, made)
        _recover(out)
        staging, lock = _make_staging(out)
        yield staging
        _flush(staging)
        _move_into_place(staging, out, force)
        done = True
    except OSError as error:
        raise _translated(error, out, staging) or error from error
    finally:
        if not done:
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)
            for folder in reversed(made):
                with contextlib.suppress(OSError):  # somebody else put a file there meanwhile: it stays
                    folder.rmdir()
        if lock is not None:
            os.close(lock)


def check_output(out: Path, *, force: bool, source: Path | None = None) -> None:
    """Whether `out` may be written, before any work is done.

    Raises:
        OutputError: it exists (without `force`), is no folder, is not this tool's to replace, overlaps with the source,
            or its parent cannot be written to.
    """
    try:
        out = _place(out)
        if source is not None:
            _check_overlap(out, source.resolve())
        if out.exists():
            _check_replaceable(out, force)
        parent = _nearest_folder(out)
    except OSError as error:  # a name too long, a folder that may not be entered
        raise _unusable(error, out) from error
    if not parent.is_dir():
        raise OutputError(f"{parent} is a file, so {out} cannot be created; choose another output with -o")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{parent} is not writable; choose another output with -o, or change its permissions")


def is_artifact(folder: Path) -> bool:
    """Whether `folder` looks like an output of this tool: a manifest, or a config beside ONNX models."""
    if not (folder / "onnx").is_dir():
        return False
    if (folder / "build.json").is_file():
        return True
    return (folder / "config.json").is_file() and any((folder / "onnx").glob("model*.onnx"))


def _place(out: Path) -> Path:
    """`out` as an absolute path; a link is followed, so that the folder behind it is what gets replaced."""
    return out.resolve()


def _check_overlap(out: Path, source: Path) -> None:
    if out == source:
        raise OutputError(f"the output {out} is the source folder itself; choose another output with -o")
    if source in out.parents:
        raise OutputError(f"the output {out} lies inside the source {source}; choose another output with -o")
    if out in source.parents:
        raise OutputError(f"the source {source} lies inside the output {out}; choose another output with -o")


def _check_replaceable(out: Path, force: bool) -> None:
    if not out.is_dir():
        raise OutputError(f"{out} exists and is not a folder; choose another output with -o")
    if not force:
        raise OutputError(f"{out} already exists; pass --force to replace it, or choose another output with -o")
    if (out / ".git").exists():
        raise OutputError(f"{out} is a git checkout, whose history --force would delete; build elsewhere and copy")
    if any(out.iterdir()) and not is_artifact(out):
        raise OutputError(
            f"{out} is neither empty nor an artifact of this tool (no build.json and onnx/ in it), so --force does not "
            "replace it; choose another output with -o"
        )


def _nearest_folder(out: Path) -> Path:
    """The closest parent of `out` that exists."""
    return next(parent for parent in out.parents if parent.exists())


def _make_parents(folder: Path, made: list[Path]) -> None:
    """Create `folder` and its missing parents, and add what was created to `made`, outermost first."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir(exist_ok=True)
        made.append(parent)


def _make_staging(out: Path) -> tuple[Path, int | None]:
    """A new staging folder and the descriptor that holds its lock (None where folders cannot be locked)."""
    while True:
        staging = out.parent / f".{out.name}.{secrets.token_hex(4)}.partial"
        staging.mkdir()
        lock = _lock(staging)
        if lock is None or _is_open_folder(lock, staging):
            return staging, lock
        os.close(lock)  # a cleaner saw it before it was locked and removed it: take another


def _lock(folder: Path) -> int | None:
    """A descriptor that locks `folder` until it is closed or the process dies; None if another process holds the lock.

    Raises nothing where locks are not to be had (some network disks, Windows): None as well, so such a folder is never
    taken for abandoned.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _is_open_folder(descriptor: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    except OSError:
        return False


def _recover(out: Path) -> None:
    """Put back what a kill between two renames left, and remove the staging folders of processes that are gone."""
    for old in _siblings(out, "old"):
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(out)
    for partial in _siblings(out, "partial"):
        lock = _lock(partial)
        if lock is None:
            continue
        if _is_open_folder(lock, partial):
            shutil.rmtree(partial, ignore_errors=True)
        os.close(lock)


def _siblings(out: Path, suffix: str) -> list[Path]:
    """The folders `.NAME.<8 hexadecimal digits>.SUFFIX` beside `out`."""
    start, end = f".{out.name}.", f".{suffix}"
    return sorted(
        path
        for path in out.parent.iterdir()
        if path.name.startswith(start)
        and path.name.endswith(end)
        and len(token := path.name[len(start) : -len(end)]) == 8
        and all(digit in "0123456789abcdef" for digit in token)
        and path.is_dir()
        and not path.is_symlink()
    )


def _move_into_place(staging: Path, out: Path, force: bool) -> None:
    if out.exists():
        _check_replaceable(out, force)  # it may have appeared, or changed, since the first check
    if not out.exists():
        staging.rename(out)
    elif _exchange(staging, out):
        shutil.rmtree(staging, ignore_errors=True)  # the old folder now; a rest of it is removed by the next build
    else:
        old = out.parent / f".{out.name}.{secrets.token_hex(4)}.old"
        out.rename(old)
        try:
            staging.rename(out)
        except BaseException:
            old.rename(out)
            raise
        shutil.rmtree(old, ignore_errors=True)
    _flush_folder(out.parent)


def _exchange(first: Path, second: Path) -> bool:
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


def _flush(staging: Path) -> None:
    for folder, _, names in os.walk(staging):
        for name in names:
            path = Path(folder) / name
            if path.stat().st_size <= FLUSHED_BYTES:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        _flush_folder(Path(folder))


def _flush_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):  # some file systems refuse to flush a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _translated(error: OSError, out: Path, staging: Path | None) -> OutputError | None:
    """The message for a full or closed disk; None for an error that is not about the output."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in _DISK:
        return OutputError(f"cannot write {out}: {reason.lower()}; free some space, or choose another disk with -o")
    named = Path(os.fsdecode(error.filename)) if error.filename else None
    ours = named is None or named == out.parent or (staging is not None and staging in (named, *named.parents))
    if error.errno in _ACCESS and ours:
        return OutputError(f"cannot write {out}: {reason.lower()}; change its permissions, or choose another with -o")
    return _unusable(error, out) if staging is None else None


def _unusable(error: OSError, out: Path) -> OutputError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    return OutputError(f"cannot create {out}: {reason.lower()}; choose another output with -o")
