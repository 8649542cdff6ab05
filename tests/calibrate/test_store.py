"""What calibration decided, read back as the writer reads it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lfm2export.calibrate.store import Store
from lfm2export.checkpoint import open_checkpoint
from lfm2export.quant import quantize
from lfm2export.weights import BlockFormat

W2, NORM = "model.layers.0.feed_forward.w2.weight", "model.layers.0.ffn_norm.weight"
Q4 = BlockFormat(4, 32, symmetric=False)


@pytest.fixture
def store(tiny_source: Path, tmp_path: Path) -> Store:
    return Store(open_checkpoint(tiny_source), tmp_path)


def test_what_is_not_there_is_the_checkpoints(store: Store) -> None:
    np.testing.assert_array_equal(store.rows(W2, 3, 9), store.checkpoint.rows(W2, 3, 9))
    assert store.prepared(W2, 3, 9, Q4) is None
    assert store.tensors is store.checkpoint.tensors


@pytest.mark.parametrize("format", [Q4, BlockFormat(4, 128, True), BlockFormat(8, 32, True)], ids=str)
def test_blocks_come_back_row_by_row(store: Store, format: BlockFormat) -> None:
    blocks = quantize(store.checkpoint.rows(W2, 0, 64) * 2, format)
    store.put_blocks(W2, format, replace(blocks, saturated=2, largest=7.0))
    for start, stop in ((0, 5), (5, 64)):
        found = store.prepared(W2, start, stop, replace(format, quantizer="round"))
        assert found is not None
        np.testing.assert_array_equal(found.codes, blocks.codes[start:stop])
        np.testing.assert_array_equal(found.scales, blocks.scales[start:stop])
        if blocks.zero_points is None:
            assert found.zero_points is None
        else:
            np.testing.assert_array_equal(found.zero_points, blocks.zero_points[start:stop])
        assert (found.saturated, found.largest) == ((2, 7.0) if start == 0 else (0, 0.0))
    assert store.prepared(W2, 0, 5, replace(format, block_size=64)) is None


def test_values_take_the_place_of_the_checkpoints(store: Store) -> None:
    values = np.linspace(1, 2, 64).astype(np.float32)
    store.put_values(NORM, values)
    rows = store.rows(NORM, 8, 16)
    np.testing.assert_array_equal(rows, values[8:16])
    rows += 1  # the caller's own
    np.testing.assert_array_equal(store.rows(NORM, 8, 16), values[8:16])
    with pytest.raises(AssertionError, match="shape"):
        store.put_values(NORM, values[:-1])
    with pytest.raises(AssertionError, match="64 rows"):
        store.put_blocks(W2, Q4, quantize(store.checkpoint.rows(W2, 0, 60), Q4))
