"""Layer 0 fitted to the table's rows: the moments are transformers' own, the search uses them, verification knows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lfm2export.checkpoint import Checkpoint, open_checkpoint
from lfm2export.first_layer import PREFIX, TOKENS, Weighted, first_layer_importance, moments
from lfm2export.hub import shipped_folder
from lfm2export.pipeline import build
from lfm2export.quant import dequantize, quantize
from lfm2export.recipes import Options
from lfm2export.reference.memory import MemoryReference
from lfm2export.reference.weights import SourceWeights
from lfm2export.untrusted.onnx_file import read_model
from lfm2export.verify.stored import read_stored
from lfm2export.verify.weights import measure_weights
from lfm2export.weights import BlockFormat

OUT_PROJ = f"{PREFIX}conv.out_proj.weight"
SEARCH = BlockFormat(4, 32, symmetric=False, quantizer="search")


@pytest.fixture(scope="module")
def shipped() -> Checkpoint:
    return open_checkpoint(shipped_folder())


def test_moments_are_those_of_transformers_on_the_same_tokens(shipped: Checkpoint) -> None:
    ids = (np.arange(1, TOKENS + 1) * 0.6180339887498949 % 1 * shipped.spec.vocab_size).astype(np.int64)
    assert len(set(ids.tolist())) > 0.9 * TOKENS
    model = MemoryReference(SourceWeights(shipped)).model
    seen: dict[str, np.ndarray] = {}
    for name, module in model.model.layers[0].named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(
                lambda _, given, name=name: seen.__setitem__(name, given[0][0].double().square().mean(0).numpy())
            )
    model(torch.from_numpy(ids)[None])
    found = first_layer_importance(shipped, shipped.spec)
    assert found.keys() == {f"{PREFIX}{name}.weight" for name in seen}
    for name, expected in seen.items():
        np.testing.assert_allclose(found[f"{PREFIX}{name}.weight"], expected, rtol=1 / 64 + 1e-3)


def test_a_first_layer_with_attention_has_none(shipped: Checkpoint) -> None:
    turned = replace(shipped.spec, layer_types=("full_attention", *shipped.spec.layer_types[1:]))
    assert first_layer_importance(shipped, turned) == {}


def test_the_last_bits_of_a_product_do_not_reach_the_moments() -> None:
    inputs = np.random.default_rng(0).standard_normal((64, 500)).astype(np.float32)
    np.testing.assert_array_equal(moments(inputs), moments(inputs * np.float32(1 + 1e-7)))
    np.testing.assert_allclose(moments(inputs), (inputs.astype(np.float64) ** 2).mean(0), rtol=1 / 64)


def test_only_searched_four_bit_matrices_of_layer_0_are_weighed(shipped: Checkpoint) -> None:
    importance = first_layer_importance(shipped, shipped.spec)
    source = Weighted(shipped, importance)
    got = source.prepared(OUT_PROJ, 8, 40, SEARCH)
    assert got is not None
    rows = shipped.rows(OUT_PROJ, 8, 40)
    wanted = quantize(rows, SEARCH, importance[OUT_PROJ])
    np.testing.assert_array_equal(got.codes, wanted.codes)
    np.testing.assert_array_equal(got.scales, wanted.scales)
    assert not np.array_equal(got.scales, quantize(rows, SEARCH).scales)
    for other in (replace(SEARCH, quantizer="round"), BlockFormat(8, 32, True, "search")):
        assert source.prepared(OUT_PROJ, 8, 40, other) is None
    assert source.prepared("model.layers.1.conv.out_proj.weight", 0, 8, SEARCH) is None


def test_the_channel_that_holds_the_energy_is_kept(shipped: Checkpoint) -> None:
    """In the shipped model one input of out_proj holds most of the energy: its column's error falls far."""
    importance = first_layer_importance(shipped, shipped.spec)[OUT_PROJ]
    column = int(importance.argmax())
    assert importance[column] > 0.5 * importance.sum()
    weight = shipped.rows(OUT_PROJ, 0, shipped.tensors[OUT_PROJ].shape[0])
    plain, weighed = (
        np.square(dequantize(quantize(weight, SEARCH, given), SEARCH, weight.shape[1]) - weight)[:, column].sum()
        for given in (None, importance)
    )
    assert weighed < 0.3 * plain


def test_the_file_is_written_so_and_verification_takes_it(shipped: Checkpoint, tmp_path: Path) -> None:
    out = build(None, options=Options(), out=tmp_path / "out").folder
    path = out / "onnx" / "model_q4.onnx"
    stored = read_stored(read_model(path), path.parent, shipped.spec)
    importance = first_layer_importance(shipped, shipped.spec)
    rows = shipped.tensors[OUT_PROJ].shape[0]
    wanted = quantize(shipped.rows(OUT_PROJ, 0, rows), SEARCH, importance[OUT_PROJ])
    weight = stored.weights[OUT_PROJ.removesuffix(".weight") + ".weight.codes"]
    np.testing.assert_array_equal(weight.blocks(0, rows).codes, wanted.codes)
    measured = measure_weights(stored, shipped)
    assert all(not one.wrong and not one.worse for one in measured)
    data = path.parent / f"{path.name}_data"
    assert weight.scales is not None
    content = bytearray(data.read_bytes())
    scale = np.frombuffer(content, np.float16, 1, weight.scales.offset)
    content[weight.scales.offset : weight.scales.offset + 2] = (scale * 1.5).astype(np.float16).tobytes()
    data.write_bytes(bytes(content))
    spoiled = {one.initializer: one for one in measure_weights(stored, shipped)}[weight.name]
    assert spoiled.wrong and spoiled.first is not None and f"{OUT_PROJ}, row 0" in spoiled.first
