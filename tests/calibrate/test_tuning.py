"""Scales tuned end to end: gradients against autograd, the model on blocks against the reference, what is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lfm2export import measures
from lfm2export.calibrate.activations import workers
from lfm2export.calibrate.student import BlockLinear, Student
from lfm2export.calibrate.tuning import divergence, tune
from lfm2export.checkpoint import Checkpoint, open_checkpoint
from lfm2export.quant import dequantize, quantize
from lfm2export.reference.run import Run
from lfm2export.reference.stream import StreamReference
from lfm2export.reference.weights import SourceWeights
from lfm2export.weights import BlockFormat, QuantizedBlocks
from tiny import write_tiny

pytestmark = pytest.mark.usefixtures("one_thread")

FORMAT = BlockFormat(4, 32, symmetric=False)
OFF = 0.1
SYMMETRIC = BlockFormat(4, 16, symmetric=True)


@pytest.fixture(scope="module", params=[False, True], ids=["", "biased"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    return open_checkpoint(write_tiny(Path(folder), conv_bias=request.param, tie_word_embeddings=not request.param))


def in_blocks(checkpoint: Checkpoint, off: float = 0.0) -> dict[str, tuple[BlockFormat, QuantizedBlocks]]:
    """Plain blocks; `off`: scales are wrong by that share, at random, which is what tuning can mend."""
    random = np.random.default_rng(8)
    names = [
        name for name in checkpoint.spec.source_tensors() if name.endswith(("proj.weight", "w1.weight", "w2.weight"))
    ]
    rows = {name: checkpoint.rows(name, 0, checkpoint.tensors[name].shape[0]) for name in names}
    found = {name: quantize(weight, FORMAT) for name, weight in rows.items()}
    factors = {name: 1 + off * random.standard_normal(blocks.scales.shape) for name, blocks in found.items()}
    return {
        name: (FORMAT, replace(blocks, scales=(blocks.scales * factors[name]).astype(np.float16)))
        for name, blocks in found.items()
    }


def sequences(count: int, seed: int) -> list[tuple[int, ...]]:
    return [tuple(row) for row in np.random.default_rng(seed).integers(0, 500, (count, 24)).tolist()]


@pytest.mark.parametrize("format", [FORMAT, SYMMETRIC], ids=["asymmetric", "symmetric"])
def test_a_layer_on_blocks_is_the_dequantized_layer(format: BlockFormat) -> None:
    """40 columns: the last block is not full."""
    random = np.random.default_rng(0)
    blocks = quantize(random.normal(size=(12, 40)).astype(np.float32), format)
    layer = BlockLinear(blocks, format, torch.ones(12))
    x = torch.from_numpy(random.normal(size=(2, 5, 40)).astype(np.float32))
    expected = torch.nn.functional.linear(x, torch.from_numpy(dequantize(blocks, format, 40)), torch.ones(12))
    assert torch.equal(layer(x), expected)


def test_gradients_by_scales_and_inputs_are_autograds() -> None:
    random = np.random.default_rng(1)
    layer = BlockLinear(quantize(random.normal(size=(12, 40)).astype(np.float32), FORMAT), FORMAT, None)
    x = torch.from_numpy(random.normal(size=(3, 40)).astype(np.float32)).requires_grad_()
    given = torch.from_numpy(random.normal(size=(3, 12)).astype(np.float32))
    mine = torch.autograd.grad(layer(x), [x, layer.change], given)
    weight = (layer.codes.float() * layer.scales()[..., None]).reshape(12, -1)[:, :40]
    theirs = torch.autograd.grad(x @ weight.mT, [x, layer.change], given)
    for a, b in zip(mine, theirs, strict=True):
        assert b.abs().max() > 0.1
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_settled_scales_are_float16_and_computed_with() -> None:
    random = np.random.default_rng(2)
    layer = BlockLinear(quantize(random.normal(size=(4, 32)).astype(np.float32), FORMAT), FORMAT, None)
    with torch.no_grad():
        layer.change += 0.01
    before = layer.scales().detach().numpy()
    settled = layer.settle()
    assert settled.dtype == np.float16 and np.array_equal(settled, before.astype(np.float16))
    assert np.array_equal(layer.scales().detach().numpy(), settled.astype(np.float32))


def test_divergence_is_the_measure_and_its_gradient_autograds() -> None:
    random = torch.Generator().manual_seed(0)
    hidden, wanted = (torch.randn(300, 16, generator=random) for _ in range(2))
    table, wanted_table = (torch.randn(50, 16, generator=random) for _ in range(2))
    value, gradient = divergence(hidden, table, wanted, wanted_table)
    expected = measures.kld((wanted @ wanted_table.mT).numpy(), (hidden @ table.mT).numpy())
    assert value == pytest.approx(float(expected.mean()), rel=1e-5)
    leaf = hidden.clone().requires_grad_()
    log_q, log_p = (leaf @ table.mT).log_softmax(-1), (wanted @ wanted_table.mT).log_softmax(-1)
    (log_p.exp() * (log_p - log_q)).sum(-1).mean().backward()
    torch.testing.assert_close(gradient, leaf.grad, atol=1e-6, rtol=1e-4)


def test_the_model_on_blocks_is_the_reference_on_dequantized_weights(checkpoint: Checkpoint) -> None:
    blocks = in_blocks(checkpoint)

    def dequantized(name: str, start: int, stop: int) -> np.ndarray | None:
        if name not in blocks:
            return None
        return dequantize(blocks[name][1], FORMAT, checkpoint.tensors[name].shape[1])[start:stop]

    student = Student(StreamReference(SourceWeights(checkpoint)), blocks)
    assert set(student.matrices) == set(blocks)
    (tokens,) = sequences(1, 3)
    with torch.no_grad():
        mine = student.hidden(tokens).numpy()
    theirs = StreamReference(SourceWeights(checkpoint, dequantized)).run([Run.prefill(tokens, caches_from=None)])[0]
    np.testing.assert_allclose(mine, theirs.hidden, atol=2e-5, rtol=0)


def tuned(checkpoint: Checkpoint, threads: int, rate: float) -> tuple[float, float, bool, dict[str, np.ndarray]]:
    student = Student(StreamReference(SourceWeights(checkpoint)), in_blocks(checkpoint, OFF))
    reference = StreamReference(SourceWeights(checkpoint))
    with workers(threads) as pool:
        found, scales = tune(student, reference, sequences(32, 4), sequences(6, 5), pool, rate=rate)
    return found.before, found.after, found.kept, scales


def test_tuning_brings_the_model_nearer_to_the_reference(checkpoint: Checkpoint) -> None:
    """On tokens that it was not tuned on, whatever the number of threads."""
    before, after, kept, scales = tuned(checkpoint, 1, 1e-2)
    assert kept and after < 0.9 * before
    start = in_blocks(checkpoint, OFF)
    for name, found in scales.items():
        assert found.dtype == np.float16 and found.shape == start[name][1].scales.shape
        moved = np.abs(found.astype(np.float32) / start[name][1].scales - 1)
        assert 1e-3 < moved.mean() < 0.2
    again = tuned(checkpoint, 3, 1e-2)
    assert again[:2] == (before, after)
    assert all(np.array_equal(scales[name], again[3][name]) for name in scales)


def test_what_does_more_harm_than_good_is_not_kept(checkpoint: Checkpoint) -> None:
    before, after, kept, _ = tuned(checkpoint, 1, 0.3)
    assert after > before and not kept


def test_fixed_matrices_keep_their_scales(checkpoint: Checkpoint) -> None:
    """They take part in what the others are tuned for."""
    blocks = in_blocks(checkpoint, OFF)
    fixed = sorted(blocks)[::2]
    student = Student(StreamReference(SourceWeights(checkpoint)), blocks, fixed)
    with workers(1) as pool:
        _, scales = tune(student, StreamReference(SourceWeights(checkpoint)), sequences(8, 4), sequences(2, 5), pool)
    assert set(scales) == set(blocks) - set(fixed) and set(student.matrices) == set(blocks)
    for name in fixed:
        assert np.array_equal(
            student.matrices[name].scales().detach().numpy(), blocks[name][1].scales.astype(np.float32)
        )
