"""In words, what the figures were measured on."""

from __future__ import annotations

import platform
from pathlib import Path

from lfm2export.bench.bandwidth import usable_cores


def machine() -> str:
    """Processor, cores that may be used, system: "AMD EPYC, 2 cores, Linux x86_64"."""
    return f"{_processor()}, {usable_cores()} cores, {platform.system()} {platform.machine()}"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or "unknown processor"
