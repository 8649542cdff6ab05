"""The helpers of tests/ are importable from this folder too."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from tiny import write_companions


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Tokenizer, template, generation_config.json and licence of a tiny checkpoint."""
    write_companions(tmp_path)
    return tmp_path
