"""What the writer refuses, and how it stops: errors in workers, interruption, a full disk."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lfm2export.errors import GraphError, OutputError, TensorError
from lfm2export.weights import RECIPE, BlockFormat, Recipe
from lfm2export.writer import write_model
from tests.weight_recipes import Q4, Source, every_kind, gaussian, model_of, quantized, small_pieces


def test_a_tensor_larger_than_a_chunk_is_refused(tmp_path: Path) -> None:
    source, recipes, _ = every_kind()
    with pytest.raises(OutputError, match=r"dense takes 18432 bytes .* more than the 18000"):
        write_model(model_of(recipes), source, tmp_path / "m.onnx", threads=1, max_chunk_bytes=18000)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    weight = gaussian(64, 64)
    weight[3, 4] = np.nan
    for recipes in ({"half": Recipe(("w",), (64, 64), "FLOAT16")}, quantized("q", ("w",), 64, 64, Q4)):
        with pytest.raises(TensorError, match=r"^(half|w)\b.*NaN or Inf"):
            write_model(model_of(recipes), Source({"w": weight}), tmp_path / "m.onnx", threads=2)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(("missing",), (4, 4)), "made of missing"),
        (Recipe(("w",), (64, 63)), "expected 4096 float values"),
        (Recipe(("w",), (64, 64), "UINT8"), "UINT8"),
        (Recipe(("w", "narrow"), (128, 64)), "parts that differ in rows only"),
        (Recipe(("conv",), (3, 8), transpose=True), "transposed"),
        (Recipe(("w",), (64, 2, 17), "UINT8", block=Q4, component="codes"), "stores codes as"),
        (Recipe(("w",), (64, 2), "FLOAT", block=Q4, component="scales"), "expected .'FLOAT16'"),
        (Recipe(("conv",), (8, 1, 16), "UINT8", block=Q4, component="codes"), "expected matrices"),
        (
            Recipe(("w",), (64, 1), "UINT8", block=BlockFormat(4, 32, symmetric=True), component="zero_points"),
            "expected None",
        ),
    ],
)
def test_recipes_that_do_not_fit_are_refused_before_anything_is_written(
    tmp_path: Path, recipe: Recipe, message: str
) -> None:
    source = Source({"w": gaussian(64, 64), "narrow": gaussian(64, 32), "conv": gaussian(8, 1, 3)})
    with pytest.raises(GraphError, match=message):
        write_model(model_of({"bad": recipe}), source, tmp_path / "m.onnx", threads=1)
    assert list(tmp_path.iterdir()) == []


def test_an_initializer_without_value_or_recipe_is_refused(tmp_path: Path) -> None:
    model = model_of({"w": Recipe(("w",), (4,))})
    del model.graph.initializers["w"].meta[RECIPE]
    with pytest.raises(GraphError, match="w has neither a value nor a recipe"):
        write_model(model, Source({}), tmp_path / "m.onnx", threads=1)


def test_an_error_in_a_worker_stops_the_others_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_pieces(monkeypatch, 256)
    reads: list[int] = []

    def before(name: str, start: int) -> None:
        reads.append(start)
        time.sleep(0.001)
        if start == 20:
            raise TensorError("row 20 is damaged")

    source = Source({"w": gaussian(4000, 64)}, before)
    with pytest.raises(TensorError, match="row 20 is damaged"):
        write_model(model_of({"w": Recipe(("w",), (4000, 64))}), source, tmp_path / "m.onnx", threads=2)
    assert len(reads) < 200
    assert not (tmp_path / "m.onnx").exists()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C reaches the code under test, though whoever started the tests ignores it, and though rubbish of tests
    before has callbacks, in which Python drops what is raised.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_interruption_propagates_and_stops_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_pieces(monkeypatch, 256)
    reads: list[int] = []

    def before(name: str, start: int) -> None:
        reads.append(start)
        time.sleep(0.001)
        if start == 20:
            os.kill(os.getpid(), signal.SIGINT)

    source = Source({"w": gaussian(4000, 64)}, before)
    with pytest.raises(KeyboardInterrupt):
        write_model(model_of({"w": Recipe(("w",), (4000, 64))}), source, tmp_path / "m.onnx", threads=2)
    after = len(reads)
    assert after < 1000
    time.sleep(0.05)
    assert len(reads) == after


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["disk_usage", "posix_fallocate", "pwrite"])
def test_a_full_disk_is_one_line_with_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: SimpleNamespace(free=100 if where == "disk_usage" else 10**9)
    )
    if where != "disk_usage":
        monkeypatch.setattr(os, where, no_space)
    source, recipes, _ = every_kind()
    with pytest.raises(OutputError, match=r"no space left in .*: m\.onnx needs \d+ bytes, has 10+; .*") as caught:
        write_model(model_of(recipes), source, tmp_path / "m.onnx", threads=2)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_an_output_error(tmp_path: Path) -> None:
    source, recipes, _ = every_kind()
    with pytest.raises(OutputError, match="cannot be written"):
        write_model(model_of(recipes), source, tmp_path / "none" / "m.onnx", threads=1)
