"""A tiny artifact to spoil, and what the reference says about it, made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lfm2export.artifact import available_models
from lfm2export.pipeline import build
from lfm2export.reference import torch_threads
from lfm2export.verify.file import Plan
from lfm2export.verify.run import Scope, make_plan
from lfm2export.verify.source import find_source

STEPS = 6


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Matrices this small only lose by threads."""
    with torch_threads(1):
        yield


@pytest.fixture(scope="session")
def spoilable(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fp32, q8 and q4 of the tiny checkpoint; copy it before spoiling it."""
    return build(str(tiny_source), dtypes=["fp32", "q8", "q4"], out=tmp_path_factory.mktemp("verify") / "out").folder


@pytest.fixture(scope="session")
def plan(spoilable: Path, tiny_source: Path) -> Plan:
    """The quick form with few steps."""
    source = find_source(spoilable, tiny_source)
    return make_plan(spoilable, available_models(spoilable), source, Scope(steps=STEPS, quick=True), threads=1)
