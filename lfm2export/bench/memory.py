"""Memory of this process. What the operating system does not tell is None.

Resident memory counts the pages of mapped files too; anonymous memory is what could not be read from a file again.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import TracebackType

STATUS = Path("/proc/self/status")

#: Seconds between two samples of anonymous memory, whose peak Linux does not keep.
INTERVAL = 0.02


def resident_bytes() -> int | None:
    """Resident memory now (Linux)."""
    return _status("VmRSS")


def anonymous_bytes() -> int | None:
    """Anonymous resident memory now (Linux)."""
    return _status("RssAnon")


def peak_resident_bytes() -> int | None:
    """The most that was resident since the process began."""
    found = _status("VmHWM")
    if found is not None:
        return found
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


class AnonymousPeak:
    """The peak of anonymous memory while the block runs, sampled every :data:`INTERVAL` seconds.

    `bytes` is None where the system does not tell it.
    """

    def __init__(self) -> None:
        self.bytes = anonymous_bytes()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> AnonymousPeak:
        if self.bytes is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        if self.bytes is not None:
            self._thread.join()
            self._note()

    def _sample(self) -> None:
        while not self._end.wait(INTERVAL):
            self._note()

    def _note(self) -> None:
        self.bytes = max(self.bytes or 0, anonymous_bytes() or 0)


def _status(field: str) -> int | None:
    """A field of /proc/self/status, in bytes; the kernel gives kB."""
    try:
        for line in STATUS.read_text(encoding="ascii").splitlines():
            name, _, rest = line.partition(":")
            if name == field:
                return int(rest.split()[0]) * 1024
    except OSError:
        pass
    return None
