"""The one callback of the library: it prints nothing, it tells whoever listens how far a stage has come."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called from any thread, often; `total` may be None while it is not known."""

    def __call__(self, stage: str, done: int, total: int | None, unit: str) -> None: ...


def silent(stage: str, done: int, total: int | None, unit: str) -> None:
    """The default listener: none."""
