"""Transformers.js lists as many data files as config.json says: it is started only where they are there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lfm2export.consumers import Verdict, transformers_js
from lfm2export.consumers.transformers_js import check_browser, check_node, chunks_fault, default_dtype
from standin import write_standin
from tiny import edit_json


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """fp32 with two data files, q4 with one."""
    write_standin(tmp_path)
    for name in ("model.onnx_data", "model.onnx_data_1", "model_q4.onnx_data"):
        (tmp_path / "onnx" / name).write_bytes(b"")
    return tmp_path


def state(folder: Path, stated: Any) -> None:
    edit_json(folder / "config.json", **{"transformers.js_config": {"use_external_data_format": stated}})


@pytest.mark.parametrize(
    "stated",
    [None, True, 2, {}, {"model.onnx": 2, "model_q4.onnx": 1}, {"model_q4.onnx": True, "model": 2, "model.onnx": None}],
)
def test_what_is_there_passes(folder: Path, stated: Any) -> None:
    assert chunks_fault(folder) is None
    state(folder, stated)
    assert chunks_fault(folder) is None


@pytest.mark.parametrize(
    "stated",
    [
        10**9,
        "1e9",
        1e9,
        [10**9],
        {"model_q4.onnx": 10**9},
        {"model_q4.onnx": 2},
        {"model_fp16.onnx": 1},
        {"model": 10**9},
        {"model_int8.onnx": 10**9},
        {"model_q4.onnx": {}},
        {"model_q4.onnx": -1},
    ],
)
def test_a_number_of_files_that_are_not_there_fails_without_a_start(
    folder: Path, stated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*_: object) -> None:
        raise AssertionError("it was started")

    for found in ("node", "browser"):
        monkeypatch.setattr(transformers_js.locate, found, lambda: Path("node"))
    monkeypatch.setattr(transformers_js, "run_script", started)
    state(folder, stated)
    asked: Mapping[str, Any] = {"q4": SimpleNamespace(model=SimpleNamespace(kv_cache="native"))}
    results = [*check_node(folder, asked), *check_node(folder, asked, "webgpu"), *check_browser(folder, asked)]
    assert len(results) == 4
    for result in results:
        assert result.verdict is Verdict.FAILED
        assert "use_external_data_format" in str(result.reason) and str(result.reason).isprintable()


@pytest.mark.parametrize(
    ("settings", "wasm", "webgpu"),
    [
        (None, "q8", "fp32"),
        ({"dtype": "q4"}, "q4", "q4"),
        ({"device_config": {"webgpu": {"dtype": "q4"}}}, "q8", "q4"),
        ({"dtype": "q8", "device_config": {"wasm": {}, "webgpu": {"dtype": "q4"}}}, "q8", "q4"),
        ({"dtype": {"model": "q4"}, "device_config": ["webgpu"]}, "q8", "fp32"),
    ],
)
def test_what_the_library_takes_where_it_is_told_no_dtype(folder: Path, settings: Any, wasm: str, webgpu: str) -> None:
    edit_json(folder / "config.json", **{"transformers.js_config": settings})
    assert (default_dtype(folder, "wasm"), default_dtype(folder, "webgpu")) == (wasm, webgpu)
