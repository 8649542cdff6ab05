"""Tiny checkpoints that a test may change."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny import write_tiny


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "sharded", shard_bytes=60_000)
