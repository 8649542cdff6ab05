"""A matrix that weighing changed in few blocks only is not taken for a damaged one."""

from __future__ import annotations

import numpy as np
import pytest

from lfm2export.calibrate.matrix import FEW, _told, _worse_than_rounding
from lfm2export.quant import quantize
from lfm2export.quant.search import quantize_search
from lfm2export.weights import BlockFormat, QuantizedBlocks

WEIGHT = np.random.default_rng(0).standard_normal((128, 240)).astype(np.float32)


def weighted(spread: float, form: BlockFormat) -> dict[str, QuantizedBlocks]:
    importance = np.exp(spread * np.random.default_rng(1).standard_normal(240)).astype(np.float32)
    return {"w": quantize_search(WEIGHT, form, importance)}


def share(form: BlockFormat, blocks: dict[str, QuantizedBlocks]) -> float:
    return float(_worse_than_rounding(WEIGHT, form, blocks["w"]).mean())


@pytest.mark.parametrize("form", [BlockFormat(4, 128, symmetric=True), BlockFormat(4, 32, symmetric=False)])
def test_few_worse_blocks_are_taken_back_and_many_are_kept(form: BlockFormat) -> None:
    plain = {"w": quantize(WEIGHT, form)}
    few, many = weighted(0.3, form), weighted(1.0, form)
    assert 0 < share(form, few) < FEW < share(form, many)
    told = _told({"w": WEIGHT}, form, few, plain)
    assert share(form, told) == 0 == share(form, plain)
    changed = (told["w"].codes != few["w"].codes).any(axis=(1, 2))
    assert 0 < changed.mean() <= FEW * form.blocks(240)
    assert _told({"w": WEIGHT}, form, many, plain) is many
