"""What many tests share: artifacts that none may change, built once a session, one thread, and a cache of graphs."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lfm2export.contract import LogitsMode
from lfm2export.pipeline import build
from lfm2export.recipes import RECIPES, Options
from lfm2export.user_cache import VARIABLE
from tiny import write_tiny


def pytest_configure(config: pytest.Config) -> None:
    """Graphs are kept in a folder of this run, which its workers and processes share, and never in the user's."""
    if hasattr(config, "workerinput"):
        return
    folder = tempfile.mkdtemp(prefix="lfm2export-tests-")
    os.environ[VARIABLE] = folder
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: tiny matrices only lose by more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with random weights."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "source")


@pytest.fixture(scope="session")
def tiny_artifact(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[LogitsMode], Path]:
    """All five files of the tiny checkpoint, for either logits mode."""
    made: dict[LogitsMode, Path] = {}

    def artifact(logits: LogitsMode) -> Path:
        if logits not in made:
            out = tmp_path_factory.mktemp("tiny") / f"out-{logits}"
            made[logits] = build(str(tiny_source), dtypes=list(RECIPES), options=Options(logits=logits), out=out).folder
        return made[logits]

    return artifact


@pytest.fixture(scope="session")
def int8_caches(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """q8 and q4 of the tiny checkpoint with int8 keys and values."""
    out = tmp_path_factory.mktemp("tiny") / "out-int8"
    return build(str(tiny_source), dtypes=["q8", "q4"], options=Options(kv_cache="int8"), out=out).folder


@pytest.fixture(scope="session")
def shipped_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All five files of the shipped model."""
    return build(None, dtypes=list(RECIPES), out=tmp_path_factory.mktemp("shipped") / "out").folder
