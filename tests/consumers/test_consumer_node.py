"""Transformers.js in Node, on the processor and, in software, on a GPU that computes in float16."""

from __future__ import annotations

from pathlib import Path

import pytest

from lfm2export.consumers import ConsumerReport, ConsumerResult, Verdict, check_consumers
from lfm2export.recipes import RECIPES

pytestmark = pytest.mark.consumer


@pytest.fixture(scope="module")
def on_cpu(shipped_artifact: Path) -> ConsumerReport:
    return check_consumers(shipped_artifact, consumers=["node"])


@pytest.fixture(scope="module")
def on_gpu(shipped_artifact: Path) -> ConsumerReport:
    return check_consumers(shipped_artifact, dtypes=["fp16", "q4f16"], consumers=["node-webgpu"])


def result(report: ConsumerReport, dtype: str) -> ConsumerResult:
    return next(found for found in report.results if found.dtype == dtype)


@pytest.mark.parametrize("dtype", RECIPES)
def test_every_file_gives_the_python_loops_tokens(on_cpu: ConsumerReport, dtype: str) -> None:
    found = result(on_cpu, dtype)
    assert found.verdict is Verdict.PASSED, on_cpu.to_markdown()
    names = [check.name for check in found.checks]
    assert "card: basic example" in names
    assert "card: tool calling" in names
    pads = [name for name in names if "pads on the left" in name]
    assert len(pads) == len(set(pads)) == 3  # three rows of three lengths


@pytest.mark.parametrize("dtype", ["fp16", "q4f16"])
def test_float16_files_on_webgpu(on_gpu: ConsumerReport, dtype: str) -> None:
    found = result(on_gpu, dtype)
    if found.verdict is Verdict.NOT_RUN:
        pytest.skip(f"{dtype} on WebGPU in Node is not run: {found.reason}")
    assert found.verdict is Verdict.PASSED, on_gpu.to_markdown()


def test_a_missing_data_file_is_named(shipped_artifact: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    (copied / "onnx").mkdir(parents=True)
    for path in shipped_artifact.rglob("*"):
        if path.is_file() and path.name != "model_q4.onnx_data":
            (copied / path.relative_to(shipped_artifact)).write_bytes(path.read_bytes())
    from lfm2export.consumers.transformers_js import Request, run_script

    answers, _ = run_script("node.mjs", copied, Request("q4", "cpu", "q4").tasks()[:1])
    assert "model_q4.onnx_data" in answers[0]["error"]
