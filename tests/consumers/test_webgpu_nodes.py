"""How many nodes of each file onnxruntime places on WebGPU: a small model's step there is as long as that list.

Counted without a GPU: Node's onnxruntime on a software Vulkan says in its log where it places every node.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lfm2export.consumers import locate
from lfm2export.consumers.locate import JS, Missing
from lfm2export.contract import MODEL_FILES
from lfm2export.kernels import webgpu_nodes
from lfm2export.pipeline import build
from lfm2export.recipes import Options, profiled
from lfm2export.spec import CONV, FULL_ATTENTION, parse_spec, read_config
from tiny import write_tiny

pytestmark = pytest.mark.consumer

#: The kinds of the 350M's 16 layers: how many nodes there are does not depend on widths.
KINDS_350M = [FULL_ATTENTION if layer in (2, 5, 8, 10, 12, 14) else CONV for layer in range(16)]

#: What 350M may take in the web profile.
MOST = 210

_PLACED = re.compile(r"(?:All nodes|Node\(s\)) placed on \[(\w+)\]\. Number of nodes: (\d+)")


def placed(model: Path) -> dict[str, int]:
    """Nodes of `model` by execution provider."""
    command = ["node", Path(__file__).with_name("placements.mjs"), JS / "node_modules/onnxruntime-node/dist/index.js"]
    done = subprocess.run(
        [*map(str, command), str(model)],
        env={**os.environ, **locate.vulkan_environment()},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    found = {name: int(count) for name, count in _PLACED.findall(done.stderr)}
    assert found, done.stderr[-2000:]
    return found


@pytest.fixture(scope="module", autouse=True)
def _adapter() -> None:
    if isinstance(locate.node(), Missing) or not locate.vulkan_environment():
        pytest.skip(f"needs Node and its software Vulkan; {locate.SETUP}")


def counts(folder: Path, dtypes: list[str], options: Options, **config: Any) -> dict[str, dict[str, int]]:
    source = folder / "source"
    wide = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2, "num_key_value_heads": 1}
    write_tiny(source, **(wide | config))
    out = build(str(source), dtypes=dtypes, options=options, out=folder / "out").folder
    return {dtype: placed(out / "onnx" / MODEL_FILES[dtype]) for dtype in dtypes}


def test_350m_takes_at_most_210_nodes(tmp_path: Path) -> None:
    found = counts(tmp_path, ["q4", "q4f16"], profiled("web"), layer_types=KINDS_350M)
    spec = parse_spec(read_config(tmp_path / "source"))
    for dtype, nodes in found.items():
        assert nodes["WebGpuExecutionProvider"] == webgpu_nodes(spec, dtype, profiled("web"))
        assert nodes["WebGpuExecutionProvider"] <= MOST
        assert nodes["CPUExecutionProvider"] <= 31  # masks, positions, and which tokens get logits, in integers


@pytest.mark.parametrize(
    "config",
    [
        {"layer_types": [CONV, FULL_ATTENTION]},
        {"layer_types": [FULL_ATTENTION, *[CONV] * 7], "conv_L_cache": 7, "tie_word_embeddings": False},
        {"layer_types": [*[CONV] * 14, FULL_ATTENTION, FULL_ATTENTION]},
    ],
    ids=["two layers", "seven states", "fourteen states"],
)
def test_other_depths_are_forecast(config: dict[str, Any], tmp_path: Path) -> None:
    found = counts(tmp_path, ["q4", "q4f16"], Options(), **config)
    spec = parse_spec(read_config(tmp_path / "source"))
    for dtype, nodes in found.items():
        assert nodes["WebGpuExecutionProvider"] == webgpu_nodes(spec, dtype, Options())


def test_what_was_not_counted_is_not_forecast(tmp_path: Path) -> None:
    write_tiny(tmp_path / "source")
    spec = parse_spec(read_config(tmp_path / "source"))
    assert webgpu_nodes(spec, "q4", Options()) is not None
    for dtype in ("fp32", "fp16", "q8"):
        assert webgpu_nodes(spec, dtype, Options()) is None
    for options in (
        profiled("cpu"),
        Options(logits="all"),
        Options(symmetric=False),
        Options(operators="plain"),
        Options(kv_cache="int8"),
    ):
        assert webgpu_nodes(spec, "q4", options) is None
    assert webgpu_nodes(replace(spec, conv_bias=True), "q4", Options()) is None
    assert webgpu_nodes(replace(spec, layer_types=(CONV,)), "q4", Options()) is None
