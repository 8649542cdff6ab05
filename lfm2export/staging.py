"""A folder is written beside its place, then renamed into it: it is the old one or the new one, whole.

    .NAME.lfm2export.partial/           locked by its writer, so that there is one
    .NAME.lfm2export.partial/1f3a9c02/  being written; another name each time, so that a worker of a build that was
                                        killed finds nothing to write into
    NAME/                               the finished folder: the old one until the rename, the new one after it
    NAME.failed/                        a new folder that its check refused; NAME is as it was

A folder that exists is exchanged for the new one in a single system call where the kernel has it (Linux renameat2), so
a kill at any moment leaves the old folder or the new one. Elsewhere there are two renames; a kill between them leaves
the old one as `.NAME.lfm2export.old`, which the next build puts back. What a killed build left behind, the next one
removes.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lfm2export.atomic import exchange, flush_folder, flush_tree
from lfm2export.errors import BusyError, Lfm2ExportError, OutputError
from lfm2export.locking import lock
from lfm2export.ownership import check_replaceable, closed_folder, edited_files
from lfm2export.untrusted.paths import is_utf8

#: errno values that mean "this disk", whatever file the failing call named.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
_ACCESS = {errno.EACCES, errno.EPERM}

#: What raises where a folder holds anything that is not to be replaced.
CheckReplaceable = Callable[[Path], None]


@dataclass
class Staged:
    """folder: to write into. place: where that will be, and is after the block. edited: files of the folder which it
    replaced that somebody had changed. left: what could not be removed of that folder, and where it is now.
    """

    folder: Path
    place: Path
    passed: bool = True
    edited: tuple[str, ...] = ()
    left: Path | None = None

    def reject(self) -> None:
        """The folder is complete but no good: it becomes `place`.failed, and what is at `place` stays."""
        self.passed = False


@contextlib.contextmanager
def staged_output(
    out: Path, *, force: bool, source: Path | None = None, replaceable: CheckReplaceable = check_replaceable
) -> Iterator[Staged]:
    """Yield an empty folder to write into; when the block ends well it becomes `out`, in one step, all on the disk.

    When it raises (KeyboardInterrupt too), the staging folder and any parents made for it go and `out` is as before.

    Args:
        force: replace `out` if it is an artifact of this tool, with nothing else in it, or empty.
        source: the checkpoint that is read meanwhile; `out` may neither contain it nor lie inside it.
        replaceable: what tells whether `out` may be replaced, for folders other than artifacts.

    Raises:
        OutputError: before the block, `out` cannot be used; during it, the disk is full or read-only.
        BusyError: another command writes into `out`.
    """
    check_output(out, force=force, source=source, replaceable=replaceable)
    out = _place(out)
    made: list[Path] = []
    workplace: Path | None = None
    staged: Staged | None = None
    done = False
    with contextlib.ExitStack() as locks:
        try:
            _make_parents(out.parent, made)
            workplace = _open_workplace(out, locks)
            folder = workplace / secrets.token_hex(4)
            folder.mkdir()
            staged = Staged(folder, out)
            _recover(out)
            _hold(out, locks, force, replaceable)
            yield staged
            flush_tree(folder)
            if staged.passed:
                if out.exists():  # it may have appeared, or changed, since the first check
                    _check_replaceable(out, force, replaceable)
                staged.edited = edited_files(out) if out.exists() else ()
            else:
                staged.place = _failed_place(out, locks, replaceable)
            staged.left = _move(folder, staged.place, replaceable)
            done = True
        except OSError as error:
            raise _translated(error, out, staged.folder if staged is not None else None) or error from error
        except Lfm2ExportError as error:
            if staged is not None:  # nobody finds the staging folder afterwards
                error.args = tuple(str(part).replace(str(staged.folder), str(out)) for part in error.args)
            raise
        finally:
            if workplace is not None:
                if staged is not None and not done:
                    _remove(staged.folder)
                with contextlib.suppress(OSError):  # where nothing can be locked, another build may be in it
                    workplace.rmdir()
            if not done:
                for parent in reversed(made):
                    with contextlib.suppress(OSError):  # somebody else put a file there meanwhile: it stays
                        parent.rmdir()


def check_output(
    out: Path, *, force: bool, source: Path | None = None, replaceable: CheckReplaceable = check_replaceable
) -> None:
    """Whether `out` may be written, before any work is done.

    Raises:
        OutputError: it exists (without `force`), is no folder, is not this tool's to replace, overlaps with the source,
            or its parent cannot be written to.
        BusyError: another command writes into it.
    """
    try:
        out = _place(out)
        if source is not None:
            _check_overlap(out, source.resolve())
        if out.exists():
            _check_replaceable(out, force, replaceable)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            _release(_lock_workplace(_workplace(out), out))
        if out.exists():
            _release(lock(out))
        parent = _nearest_folder(out)
    except OSError as error:  # a name too long, a folder that may not be entered
        raise _unusable(error, out) from error
    if not parent.is_dir():
        raise OutputError(f"{parent} is a file, so {out} cannot be created; choose another output with -o")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{parent} is not writable; choose another output with -o, or change its permissions")


def _place(out: Path) -> Path:
    """`out` as an absolute path; a link is followed, so that the folder behind it is what gets replaced.

    Raises:
        OutputError: its name is not UTF-8, which onnxruntime could not open.
    """
    place = out.resolve()
    if not is_utf8(place):
        raise OutputError(f"the name of the output {place} is not UTF-8; choose another output with -o")
    return place


def _check_overlap(out: Path, source: Path) -> None:
    if out == source:
        raise OutputError(f"the output {out} is the source folder itself; choose another output with -o")
    if source in out.parents:
        raise OutputError(f"the output {out} lies inside the source {source}; choose another output with -o")
    if out in source.parents:
        raise OutputError(f"the source {source} lies inside the output {out}; choose another output with -o")


def _check_replaceable(out: Path, force: bool, replaceable: CheckReplaceable) -> None:
    if not out.is_dir():
        raise OutputError(f"{out} exists and is not a folder; choose another output with -o")
    if not force:
        raise OutputError(f"{out} already exists; pass --force to replace it, or choose another output with -o")
    replaceable(out)
    closed = closed_folder(out)
    if closed is not None:
        raise OutputError(
            f"{closed} is not writable, so that {out} cannot be replaced; change its permissions (chmod -R u+w), or "
            "choose another output with -o"
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


def _workplace(out: Path) -> Path:
    return out.with_name(f".{out.name}.lfm2export.partial")


def _old_folder(out: Path) -> Path:
    return out.with_name(f".{out.name}.lfm2export.old")


def _open_workplace(out: Path, locks: contextlib.ExitStack) -> Path:
    """The folder to write in, locked until `locks` closes; what a killed build left in it is removed.

    Raises:
        BusyError: another process writes into it.
    """
    folder = _workplace(out)
    while True:
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
        if folder.is_symlink() or not folder.is_dir():
            raise OutputError(f"{folder} is in the way; remove it, or choose another output with -o")
        try:
            held = _lock_workplace(folder, out)
        except FileNotFoundError:  # of a build that has just ended
            continue
        if held is not None:  # without locks, nobody knows whether what is there is in use
            locks.callback(_release, held)
            for entry in folder.iterdir():
                _remove_rest(entry)
        return folder


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder, of which what cannot be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_rest(path: Path) -> None:
    """Remove what an earlier build left.

    Raises:
        OutputError: that is not possible.
    """
    with contextlib.suppress(OSError):
        _remove(path)
    if os.path.lexists(path):
        raise OutputError(
            f"{path} is left of an earlier build and cannot be removed; change its permissions (chmod -R u+w) and "
            "remove it"
        )


def _lock_workplace(folder: Path, out: Path) -> int | None:
    try:
        return lock(folder)
    except BusyError as error:
        raise BusyError(f"another build into {out} is running; wait until it has ended") from error


def _hold(out: Path, locks: contextlib.ExitStack, force: bool, replaceable: CheckReplaceable) -> None:
    """Lock a folder that is to be replaced, so that no other command starts work in it."""
    if out.exists():
        locks.callback(_release, lock(out))
        _check_replaceable(out, force, replaceable)


def _release(held: int | None) -> None:
    if held is not None:
        os.close(held)


def _recover(out: Path) -> None:
    """Put back, or remove, what a kill left of an exchange by two renames; the staging folder is locked."""
    for place in (out, *_failed_names(out, 1)):
        old = _old_folder(place)
        if not old.is_dir() or old.is_symlink():
            continue
        if place.exists():
            _remove_rest(old)
        else:
            old.rename(place)


def _failed_names(out: Path, count: int | None = None) -> Iterator[Path]:
    names = itertools.chain((f"{out.name}.failed",), (f"{out.name}.failed.{number}" for number in itertools.count(2)))
    return (out.with_name(name) for name in itertools.islice(names, count))


def _failed_place(out: Path, locks: contextlib.ExitStack, replaceable: CheckReplaceable) -> Path:
    """Where a folder that did not pass is kept: the first name that is free, or holds nothing but such a folder.

    Somebody's own OUT.failed is no reason to lose what took minutes to make.
    """
    for place in _failed_names(out):
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            continue
        try:
            _hold(place, locks, True, replaceable)
        except OutputError:
            continue
        return place
    raise AssertionError("names do not end")


def _move(staging: Path, place: Path, replaceable: CheckReplaceable) -> Path | None:
    """Rename `staging` to `place`; what was there is removed, unless something has appeared in it that is not ours.

    Returns:
        Where the rest of what was there is, if not all could be removed.
    """
    old = staging
    if not place.exists():
        staging.rename(place)
    elif exchange(staging, place):
        try:
            replaceable(staging)
        except BaseException:
            exchange(staging, place)
            raise
    else:
        old = _old_folder(place)
        place.rename(old)
        try:
            replaceable(old)
            staging.rename(place)
        except BaseException:
            old.rename(place)
            raise
    shutil.rmtree(old, ignore_errors=True)
    flush_folder(place.parent)
    return old if old.exists() else None


def _translated(error: OSError, out: Path, staging: Path | None) -> OutputError | None:
    """The message for a full or closed disk; None for an error that is not about the output."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in _DISK:
        return OutputError(f"cannot write {out}: {reason.lower()}; free some space, or choose another disk with -o")
    if error.errno in (errno.EEXIST, errno.ENOTEMPTY) and error.filename2 in (str(out), out):
        return OutputError(f"{out} appeared while it was made; choose another output with -o")
    named = Path(os.fsdecode(error.filename)) if error.filename else None
    ours = staging is not None and named is not None and staging in (named, *named.parents)
    if error.errno in _ACCESS and (ours or named is None or named == out.parent):
        return OutputError(f"cannot write {out}: {reason.lower()}; change its permissions, or choose another with -o")
    if ours:
        return OutputError(f"cannot write {out}: {reason.lower()}; check its disk, or choose another with -o")
    return _unusable(error, out) if staging is None else None


def _unusable(error: OSError, out: Path) -> OutputError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    return OutputError(f"cannot create {out}: {reason.lower()}; choose another output with -o")
