"""Transformers.js in a page, on wasm and on WebGPU; files in several chunks; and what a missing chunk says."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lfm2export import writer
from lfm2export.consumers import ConsumerReport, Verdict, check_consumers
from lfm2export.consumers.asked import Asked
from lfm2export.consumers.prompts import PLAIN
from lfm2export.consumers.transformers_js import run_script
from lfm2export.pipeline import build

pytestmark = pytest.mark.consumer

#: Small enough that the 4-bit file of the shipped model needs several data files.
CHUNK_BYTES = 1_500_000


@pytest.fixture(scope="module")
def report(shipped_artifact: Path) -> ConsumerReport:
    return check_consumers(shipped_artifact, dtypes=["fp32", "q8", "q4", "q4f16"], consumers=["browser"])


@pytest.fixture(scope="module")
def chunked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "write_model", partial(writer.write_model, max_chunk_bytes=CHUNK_BYTES))
        return build(None, dtypes=["q4"], out=tmp_path_factory.mktemp("chunked") / "out").folder


@pytest.mark.parametrize(
    ("dtype", "device"), [("fp32", "wasm"), ("q8", "wasm"), ("q4", "wasm"), ("fp32", "webgpu"), ("q4", "webgpu")]
)
def test_the_page_gives_the_python_loops_tokens(report: ConsumerReport, dtype: str, device: str) -> None:
    found = next(one for one in report.results if (one.dtype, one.device) == (dtype, device))
    assert found.verdict is Verdict.PASSED, report.to_markdown()
    passed = {check.name for check in found.checks}
    assert {"own server only", "file"} <= passed
    assert ("card: basic example" in passed) == (device == "wasm")


def test_float16_is_run_or_stated_as_not_run(report: ConsumerReport) -> None:
    found = {one.device: one for one in report.results if one.dtype == "q4f16"}
    assert found["wasm"].verdict is Verdict.NOT_RUN
    assert found["webgpu"].verdict is Verdict.PASSED or "has no shader-f16" in str(found["webgpu"].reason)


def job(**fields: Any) -> Mapping[str, Any]:
    return {
        "kind": "job",
        "dtype": "q4",
        "device": "wasm",
        "max_new_tokens": 8,
        "prompts": [PLAIN.request()],
        "batch": [],
        "alone": False,
        **fields,
    }


def test_chunks_load_and_a_missing_one_is_named(chunked: Path) -> None:
    chunks = sorted(path.name for path in (chunked / "onnx").glob("model_q4.onnx_data*"))
    assert len(chunks) >= 2
    missing = "onnx/model_q4.onnx_data_1"
    (facts, loaded, failed), _ = run_script("browser.mjs", chunked, [job(), job(missing=[missing])])
    assert facts["isolated"]
    wanted = Asked(chunked, "q4").answer(PLAIN)
    assert tuple(loaded["value"]["runs"][0]["tokens"]) == wanted.tokens[:8]
    assert {f"onnx/{name}" for name in chunks} <= set(loaded["files"])
    assert missing in failed["error"]
    assert "not found" in failed["error"]
