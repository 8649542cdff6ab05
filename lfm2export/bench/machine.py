"""In words, what the figures were measured on."""

from __future__ import annotations

import platform
from pathlib import Path

from lfm2export.bench.bandwidth import usable_cores


def machine() -> str:
    """Processor, cores that may be used, system: "AMD EPYC (family 26, model 2), 2 cores, Linux x86_64"."""
    return f"{_processor()}, {usable_cores()} cores, {platform.system()} {platform.machine()}"


def _processor() -> str:
    """With family and model where it states them: virtual machines call different generations by one name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    found: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    name = found.get("model name", "")
    if name and "cpu family" in found and "model" in found:
        name += f" (family {found['cpu family']}, model {found['model']})"
    return name or platform.processor() or "unknown processor"
