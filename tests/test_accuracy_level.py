"""Files of blocks whose products do not round activations: what the build, inspect and verify make of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lfm2export.inspection import inspect_artifact
from lfm2export.pipeline import build
from lfm2export.recipes import AccuracyLevel, Options
from lfm2export.verify.run import verify_artifact


@pytest.fixture(scope="module")
def artifacts(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[AccuracyLevel, Path]:
    """q4, and q8 in blocks, at either level."""
    place = tmp_path_factory.mktemp("levels")
    levels: tuple[AccuracyLevel, ...] = (0, 4)
    return {
        level: build(
            str(tiny_source),
            dtypes=["fp32", "q8", "q4", "q4f16"],
            options=Options(accuracy_level=level, q8="blocks"),
            out=place / f"level-{level}",
        ).folder
        for level in levels
    }


def test_the_level_is_in_the_graph_the_manifest_and_the_card(artifacts: dict[AccuracyLevel, Path]) -> None:
    for level, folder in artifacts.items():
        found = {model.dtype: model.accuracy_levels for model in inspect_artifact(folder, hashes=False).models}
        assert found == {"fp32": (), "q8": (level,), "q4": (level,), "q4f16": (level,)}
        recipe = json.loads((folder / "build.json").read_text(encoding="utf-8"))["recipe"]
        assert [recipe[dtype]["accuracy_level"] for dtype in ("fp32", "q8", "q4")] == [None, level, level]
        assert f"accuracy level {level}" in (folder / "README.md").read_text(encoding="utf-8")


def test_the_weights_are_the_same(artifacts: dict[AccuracyLevel, Path]) -> None:
    for name in ("model_quantized.onnx_data", "model_q4.onnx_data"):
        assert (artifacts[0] / "onnx" / name).read_bytes() == (artifacts[4] / "onnx" / name).read_bytes()


def test_verify_measures_what_rounding_costs(artifacts: dict[AccuracyLevel, Path], tiny_source: Path) -> None:
    """The logits of the file as shipped, less PyTorch's on the same weights, as a share of their size."""
    shares = {}
    for level, folder in artifacts.items():
        result = verify_artifact(folder, reference=tiny_source, dtypes=["q4"], quick=True, steps=4)
        assert result.passed
        assert result.files[0].steps is not None
        shares[level] = result.files[0].steps.own_logits
    assert shares[0] is not None and shares[4] is not None
    assert shares[0] < 1e-4 < 1e-3 < shares[4]
