"""What the chat page is told of the model files, and what `chat-page` says is missing for whom."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lfm2export.consumers.page_data import PageFile, describe_files, encoded, missing_for_whom
from lfm2export.contract import LogitsMode
from lfm2export.errors import ArtifactError, SourceError
from lfm2export.inspection import inspect_artifact
from lfm2export.pipeline import build
from lfm2export.recipes import Options
from standin import write_standin
from tiny import edit_json


def test_every_file_as_inspect_reads_it(tiny_artifact: Callable[[LogitsMode], Path]) -> None:
    folder = tiny_artifact("last")
    found, inspected = describe_files(folder), inspect_artifact(folder, hashes=False)
    assert {dtype: file.bytes for dtype, file in found.items()} == {one.dtype: one.bytes for one in inspected.models}
    assert {dtype for dtype, file in found.items() if file.cache == "float16"} == {"fp16", "q4f16"}
    assert {dtype for dtype, file in found.items() if file.int8} == {"q8"}
    table = found["fp32"].largest
    assert found["fp16"].largest * 2 == table
    assert table <= found["q8"].largest * 4 <= table * 2  # products of bytes are padded
    assert json.loads(encoded(folder, found))["files"]["q8"] == {
        "bytes": found["q8"].bytes,
        "largest": found["q8"].largest,
        "cache": "float32",
        "int8": True,
    }
    assert missing_for_whom(folder, found) == []


def test_q8_in_blocks_does_not_multiply_in_8_bits(tiny_source: Path, tmp_path: Path) -> None:
    folder = build(str(tiny_source), dtypes=["q8"], options=Options(q8="blocks"), out=tmp_path / "my out").folder
    found = describe_files(folder)
    assert not found["q8"].int8
    for_processors, for_gpus, command = missing_for_whom(folder, found)
    assert "with q8 in blocks, visitors without WebGPU get 1 to 3 tokens a second" in for_processors
    assert "without q4 or q4f16, visitors with WebGPU" in for_gpus
    assert command.endswith(f"lfm2-export build SOURCE --dtype q8 --dtype q4 --q8 channels -o '{folder}' --force")


def test_what_a_hub_id_was_built_from_is_named(tmp_path: Path) -> None:
    source = {"name": "LFM2-350M", "repo_id": "LiquidAI/LFM2-350M", "revision": "f00d" * 10}
    (tmp_path / "build.json").write_text(json.dumps({"schema_version": 1, "files": {}, "source": source}))
    files = {"q4": PageFile(1, 1, "float32", False)}
    _, command = missing_for_whom(tmp_path, files)
    assert f"build LiquidAI/LFM2-350M --revision {'f00d' * 10} --dtype q8 --dtype q4 -o {tmp_path}" in command
    assert json.loads(encoded(tmp_path, files))["model"] == "LFM2-350M"


def test_int8_caches_serve_no_gpu(tmp_path: Path) -> None:
    files = {"q8": PageFile(1, 1, "float32", True), "q4": PageFile(1, 1, "int8", False)}
    lines = missing_for_whom(tmp_path, files)
    assert len(lines) == 2 and "with int8 caches in q4, and without q4f16" in lines[0]
    assert "--dtype q8 --dtype q4 --dtype q4f16 -o" in lines[1]
    assert json.loads(encoded(tmp_path, files))["model"] is None


def test_folders_that_cannot_be_described(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        describe_files(tmp_path)
    write_standin(tmp_path)
    assert describe_files(tmp_path)["fp32"].cache == "float32"
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ArtifactError):
        describe_files(tmp_path)
    (tmp_path / "onnx" / "model.onnx").unlink()
    with pytest.raises(ArtifactError, match="has no model file"):
        describe_files(tmp_path)
    edit_json(tmp_path / "config.json", model_type="llama")
    with pytest.raises(SourceError):
        describe_files(tmp_path)
