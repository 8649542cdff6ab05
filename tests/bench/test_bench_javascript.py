"""The benchmark in Node and in a browser: figures that hang together, and one line for what is not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lfm2export.bench.run import bench_artifact
from lfm2export.bench.table import tables
from lfm2export.cli import main
from lfm2export.consumers import locate
from lfm2export.contract import LogitsMode
from lfm2export.errors import ArtifactError

Artifact = Callable[[LogitsMode], Path]


@pytest.mark.consumer
@pytest.mark.parametrize(("runtime", "device", "dtypes"), [("node", "cpu", ("q4", "q8")), ("browser", "wasm", ())])
def test_figures_hang_together(tiny_artifact: Artifact, runtime: Any, device: str, dtypes: tuple[str, ...]) -> None:
    """On wasm the file that Transformers.js takes there by itself."""
    found = bench_artifact(
        tiny_artifact("last"), dtypes, runtime=runtime, contexts=[8, 40], threads=1, repeats=2, decoded=3
    )
    assert (found.runtime, found.device, found.threads, found.read_bandwidth) == (runtime, device, 1, None)
    assert {"@huggingface/transformers", "lfm2export"} < set(found.versions)
    assert [file.dtype for file in found.files] == list(dtypes or ("q8",))
    for file in found.files:
        assert file.loop == "Transformers.js" and file.load_seconds.count == 1
        assert file.base_resident is not None and file.loaded_resident is not None and file.base_resident > 1e7
        assert [context.context for context in file.contexts] == [8, 40]
        for context in file.contexts:
            assert context.prefill_rate and context.decode_rate and context.first_token_seconds
            assert context.decode_rate.count == 2 and context.decoded == 3
            assert context.prefill_rate.high == pytest.approx(context.context / context.first_token_seconds.low)
            assert context.bandwidth_share is None and context.peak_anonymous is None
            assert context.peak_resident is not None and context.peak_resident >= file.base_resident
    caption = str(tables(found)[0].caption)
    assert caption.startswith(f"{runtime}, {device}; ") and "memory reads" not in caption


@pytest.mark.consumer
def test_a_file_that_does_not_run_there(tiny_artifact: Artifact) -> None:
    with pytest.raises(ArtifactError, match="fp16 on wasm: float16 activations are for GPUs; choose another --dtype"):
        bench_artifact(tiny_artifact("last"), ("fp16",), runtime="browser", contexts=[8])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--runtime", "node", "--device", "wasm"), "--device is wasm, expected cpu or webgpu with --runtime node"),
        (
            ("--runtime", "browser", "--device", "cpu"),
            "--device is cpu, expected wasm or webgpu with --runtime browser",
        ),
        (
            ("--device", "webgpu"),
            "--device is webgpu, expected cpu with --runtime python; add --runtime node or browser",
        ),
        (("--runtime", "node"), f"Node 20 or newer is not installed; install nodejs and npm, then {locate.SETUP}"),
        (("--runtime", "browser"), f"Node 20 or newer is not installed; install nodejs and npm, then {locate.SETUP}"),
    ],
)
def test_what_is_not_there_is_one_line(
    tiny_artifact: Artifact, options: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = CliRunner().invoke(main, ["bench", str(tiny_artifact("last")), *options])
    assert (result.exit_code, result.stderr) == (2, f"Error: {words}\n")


def test_node_without_its_packages_is_one_line(
    tiny_artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = tmp_path / "node"
    node.write_text("#!/bin/sh\n")
    node.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(locate, "JS", tmp_path)
    result = CliRunner().invoke(main, ["bench", str(tiny_artifact("last")), "--runtime", "node"])
    words = f"@huggingface/transformers is not installed; {locate.SETUP}"
    assert (result.exit_code, result.stderr) == (2, f"Error: {words}\n")
