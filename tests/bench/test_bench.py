"""The benchmark of a folder: figures that hang together, what is skipped, and what ends it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from lfm2export.bench import memory
from lfm2export.bench.bandwidth import read_bandwidth
from lfm2export.bench.measure import Engine
from lfm2export.bench.results import BenchResult, ContextResult, Spread, spread
from lfm2export.bench.run import bench_artifact
from lfm2export.bench.table import tables
from lfm2export.cli import main
from lfm2export.contract import LogitsMode
from lfm2export.errors import ArtifactError, SourceError, StepError
from lfm2export.runtime import OnnxModel
from standin import write_standin


@pytest.fixture(scope="module")
def result(tiny_artifact: Callable[[LogitsMode], Path]) -> BenchResult:
    """Two files of a model with room for 2,048 tokens, at the default contexts."""
    return bench_artifact(tiny_artifact("last"), ("q4", "fp32"), threads=1, repeats=2, decoded=4)


def test_figures_hang_together(result: BenchResult) -> None:
    assert [file.dtype for file in result.files] == ["q4", "fp32"] and result.threads == 1
    for file in result.files:
        assert file.load_seconds.count == 2 and file.loop == "buffered"
        assert file.loaded_resident is not None and file.base_resident is not None
        assert file.resident_ratio == pytest.approx(file.loaded_resident / file.bytes)
        assert file.loaded_resident >= file.base_resident
        previous = file.loaded_resident
        for context in file.contexts[:2]:
            assert context.first_token_seconds and context.prefill_rate and context.decode_rate
            assert context.first_token_seconds.count == 2 and context.decoded == 4
            assert context.prefill_rate.high == pytest.approx(context.context / context.first_token_seconds.low)
            assert context.bytes_per_token and context.bandwidth_share == pytest.approx(
                context.bytes_per_token * context.decode_rate.median / (result.read_bandwidth or 0)
            )
            assert context.peak_resident is not None and context.peak_resident >= previous
            assert context.peak_anonymous is not None and 0 < context.peak_anonymous <= context.peak_resident
            previous = context.peak_resident


def test_bytes_per_token_grow_with_the_context(result: BenchResult) -> None:
    short, middle, _ = result.files[0].contexts
    assert short.bytes_per_token and middle.bytes_per_token
    # Two attention layers, keys and values of 2 heads of 16 float32.
    assert middle.bytes_per_token - short.bytes_per_token == (512 - 128) * 2 * 2 * 2 * 16 * 4


def test_a_default_context_without_room_is_not_measured_and_says_so(result: BenchResult) -> None:
    assert result.files[0].contexts[2] == ContextResult(4096, skipped="the model has room for 2048 tokens")


def test_a_context_that_was_asked_for_must_fit(tiny_artifact: Callable[[LogitsMode], Path]) -> None:
    with pytest.raises(StepError, match="exceed the context length 2048"):
        bench_artifact(tiny_artifact("last"), contexts=[128, 2048])


def test_json_and_tables(result: BenchResult) -> None:
    document = json.loads(json.dumps(result.to_dict()))
    assert document["schema_version"] == 1
    assert document["files"][1]["contexts"][2]["decode_rate"] is None
    titles = [str(table.title) for table in tables(result)]
    assert len(titles) == 2 and "model_q4.onnx" in titles[0] and tables(result)[0].row_count == 3


def test_a_folder_of_another_tool(tmp_path: Path) -> None:
    """No manifest, weights inside the model file; all positions' logits."""
    folder = write_standin(tmp_path / "other", logits="all")
    found = bench_artifact(folder, contexts=[16], threads=1, repeats=1, decoded=2)
    assert found.files[0].contexts[0].decode_rate is not None


def test_a_file_that_does_not_run_on_shared_buffers_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copying(model: OnnxModel) -> OnnxModel:
        return model

    monkeypatch.setattr("lfm2export.bench.measure.fastest", copying)
    engine = Engine(write_standin(tmp_path), None, threads=1)
    run = engine.run(8, 3)
    assert not engine.buffered and run.decoded == 3 and run.decode_seconds > 0


def test_a_file_that_does_not_load(tmp_path: Path) -> None:
    folder = write_standin(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"conv_L_cache": 4}))
    with pytest.raises(ArtifactError, match=r"past_conv\.0 has shape"):
        bench_artifact(folder, contexts=[16], threads=1)


def test_a_worker_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_standin(tmp_path / "model")
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho last words >&2\nkill -9 $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(ArtifactError, match=r"ended with signal 9; perhaps it needs more memory .*\(last words\)"):
        bench_artifact(folder, contexts=[16], threads=1)


def test_missing_folders_and_files(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not a folder"):
        bench_artifact(tmp_path / "nowhere")
    write_standin(tmp_path)
    with pytest.raises(ArtifactError, match=r"has no onnx/model_q4\.onnx"):
        bench_artifact(tmp_path, ("q4",))
    (tmp_path / "config.json").unlink()
    with pytest.raises(SourceError):
        bench_artifact(tmp_path)


def test_the_command(tmp_path: Path) -> None:
    folder = str(write_standin(tmp_path))
    asked = ["bench", folder, "--context", "16", "--repeats", "1", "--threads", "1"]
    shown = CliRunner().invoke(main, asked)
    assert shown.exit_code == 0 and "decode, tokens/s" in shown.output
    told = CliRunner().invoke(main, [*asked, "--json", "--quiet"])
    assert told.exit_code == 0 and json.loads(told.stdout)["files"][0]["contexts"][0]["context"] == 16
    for wrong in (["--context", "0"], ["--context", "4096"], ["--dtype", "q8"], ["--threads", "0"]):
        refused = CliRunner().invoke(main, ["bench", folder, *wrong])
        assert refused.exit_code == 2, refused.output


def test_spread() -> None:
    assert spread([3.0, 1.0, 8.0]) == Spread(3.0, 1.0, 8.0, 3)


def test_memory_that_was_taken_and_given_back_is_in_the_peak() -> None:
    before = memory.anonymous_bytes()
    with memory.AnonymousPeak() as peak:
        taken = np.ones(64 << 17)
        memory_with = memory.anonymous_bytes()
        while peak.bytes is not None and memory_with is not None and peak.bytes < memory_with - (1 << 20):
            pass  # the sampler comes by
        del taken
    if before is None:
        pytest.skip("this system does not tell anonymous memory")
    assert peak.bytes is not None and peak.bytes >= before + (60 << 20)


def test_what_the_system_does_not_tell_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "STATUS", tmp_path / "missing")
    assert memory.resident_bytes() is None and memory.anonymous_bytes() is None
    with memory.AnonymousPeak() as peak:
        pass
    assert peak.bytes is None


@pytest.mark.parametrize("threads", [1, 2])
def test_the_read_test_reads_at_a_speed_of_memory(threads: int) -> None:
    assert 1e8 < read_bandwidth(threads, buffer_bytes=32 << 20, rounds=2) < 1e13
