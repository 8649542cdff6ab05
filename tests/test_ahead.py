"""Blocks made during the trace are those that the writer would make, and nothing depends on them."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from lfm2export import ahead
from lfm2export.ahead import foreseen, quantized_ahead
from lfm2export.checkpoint import open_checkpoint
from lfm2export.errors import TensorError
from lfm2export.pieces import cut
from lfm2export.pipeline import build, dtype_graph, fused_graph
from lfm2export.quant import quantize
from lfm2export.recipes import RECIPES, Options
from lfm2export.writer import _recipes, lay_out
from tiny import write_tiny


def test_what_is_foreseen_is_what_the_writer_asks_for(tiny_source: Path) -> None:
    """Every piece in blocks, of all dtypes, and no other."""
    checkpoint, options = open_checkpoint(tiny_source), Options()
    fused = fused_graph(checkpoint.spec, "last")
    asked = set()
    for dtype in RECIPES:
        slots, _ = lay_out(_recipes(dtype_graph(fused, checkpoint.spec, dtype, options)), 1 << 40)
        for piece in cut(slots, checkpoint):
            if (block := piece.slots[0].recipe.block) is not None:
                asked.add(ahead.Rows(piece.part, piece.start, piece.stop, block))
    found = foreseen(checkpoint, checkpoint.spec, list(RECIPES), options)
    assert asked and set(found) == asked
    assert len(found) == len(asked)


@pytest.mark.parametrize("symmetric", [False, True])
def test_prepared_blocks_are_the_quantizers_own(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, symmetric: bool
) -> None:
    monkeypatch.setattr(ahead, "FEW", 0)
    checkpoint, options = open_checkpoint(tiny_source), Options(symmetric=symmetric)
    wanted = foreseen(checkpoint, checkpoint.spec, ["q8", "q4"], options)
    with quantized_ahead(checkpoint, checkpoint.spec, ["q8", "q4"], options, tmp_path / "ahead", 1) as found:
        deadline = time.monotonic() + 60
        while len(found.held) < len(wanted) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(found.held) == len(wanted)
    for rows in wanted:
        blocks = found.prepared(rows.part, rows.start, rows.stop, rows.format)
        expected = quantize(checkpoint.rows(rows.part, rows.start, rows.stop), rows.format)
        assert blocks is not None
        np.testing.assert_array_equal(blocks.codes, expected.codes)
        np.testing.assert_array_equal(blocks.scales, expected.scales)
        assert (blocks.zero_points is None) == rows.format.symmetric
        if blocks.zero_points is not None and expected.zero_points is not None:
            np.testing.assert_array_equal(blocks.zero_points, expected.zero_points)
    assert found.prepared(rows.part, rows.start + 1, rows.stop, rows.format) is None


def test_a_build_that_worked_ahead_has_the_same_bytes_and_leaves_nothing(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = build(str(tiny_source), dtypes=["q4"], out=tmp_path / "plain", threads=1)
    monkeypatch.setattr(ahead, "FEW", 0)
    made = build(str(tiny_source), dtypes=["q4"], out=tmp_path / "ahead", threads=2)
    assert made.models["q4"].files == plain.models["q4"].files
    assert {path.name for path in (tmp_path / "ahead").rglob("*")} == {
        path.name for path in (tmp_path / "plain").rglob("*")
    }


def test_a_bad_weight_is_the_writers_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "FEW", 0)
    source = write_tiny(tmp_path / "source")
    checkpoint = open_checkpoint(source)
    tensor = checkpoint.tensors["model.layers.0.feed_forward.w2.weight"]
    with tensor.file.open("r+b") as file:
        file.seek(tensor.offset)
        file.write(b"\xff" * 4)
    with pytest.raises(TensorError, match=r"feed_forward\.w2\.weight.*NaN"):
        build(str(source), dtypes=["q4"], out=tmp_path / "out", threads=2)
    assert not (tmp_path / "out").exists()
