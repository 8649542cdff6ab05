"""One command at a time writes into a folder: the lock is on the folder itself, so nothing is left behind.

It goes with the process that took it, however that ends. Where folders cannot be locked (Windows, some network disks),
there is no lock, and commands run beside each other.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from lfm2export.atomic import remove_partials
from lfm2export.errors import BusyError


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder` while the block runs, and first remove what killed writes left in it.

    A folder that does not exist is nobody's: the block runs, and says what it misses.

    Raises:
        BusyError: another command holds it.
    """
    try:
        descriptor = lock(folder)
    except OSError:
        descriptor = None
    if descriptor is None:
        yield
        return
    try:
        remove_partials(folder)
        yield
    finally:
        os.close(descriptor)


def lock(folder: Path) -> int | None:
    """A descriptor that locks `folder` until it is closed or the process ends; None where folders cannot be locked.

    Raises:
        BusyError: another command holds the lock.
        OSError: there is no such folder.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    while True:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), folder.stat()):
                return descriptor
        except OSError as error:
            os.close(descriptor)
            if error.errno == errno.EWOULDBLOCK:
                raise BusyError(
                    f"{folder} is in use by another command of this tool (build, verify, report, check-consumers or "
                    "chat-page); wait until it has ended"
                ) from error
            if isinstance(error, FileNotFoundError):
                raise
            return None
        os.close(descriptor)  # a build put another folder in its place since it was opened
