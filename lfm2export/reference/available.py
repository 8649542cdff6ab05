"""How much memory a process may still take, from the operating system and from the container it runs in."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

#: (limit, use) of control groups, version 2 and 1.
CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available_bytes() -> int:
    """Bytes that can be taken without swapping; on systems that do not tell, half of what is installed."""
    free = [_machine()]
    for limit, use in CGROUPS:
        try:
            free.append(int(Path(limit).read_text()) - int(Path(use).read_text()))
        except (OSError, ValueError):
            continue  # not in such a group, or "max": no limit
    return max(0, min(free))


def give_back() -> None:
    """Return memory that is free to the system, where the C library keeps it (glibc): .3 GB after a session of 2.6B."""
    with suppress(OSError, AttributeError, TypeError):  # another C library, which has no such function
        ctypes.CDLL(None).malloc_trim(0)


def _machine() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return 8 << 30
