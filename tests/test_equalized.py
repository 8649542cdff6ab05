"""An equalized checkpoint: the same function bit for bit, and codes that do not see how channels are scaled."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.outliers import Factors, always, mixed, plant_channels
from lfm2export.checkpoint import Checkpoint, open_checkpoint
from lfm2export.equalized import equalized
from lfm2export.first_layer import Weighted, first_layer_importance
from lfm2export.hub import shipped_folder
from lfm2export.matrices import matrices
from lfm2export.quant import blocks_of, dequantize, quantize
from lfm2export.recipes import TABLES
from lfm2export.reference.memory import MemoryReference
from lfm2export.reference.run import Run, Trace
from lfm2export.reference.weights import SourceWeights
from lfm2export.text.tokenizer import ChatTokenizer
from lfm2export.verify.prompts import held_out_text
from lfm2export.weights import BlockFormat, ChannelFormat
from tiny import write_tiny

pytestmark = pytest.mark.usefixtures("one_thread")

#: Of a matrix of so many columns.
FORMATS: dict[str, Callable[[int], BlockFormat]] = {
    "4 bits in blocks of 32": lambda _: BlockFormat(4, 32, symmetric=False, quantizer="round"),
    "4 bits in blocks of 256": lambda _: BlockFormat(4, 256, symmetric=False, quantizer="round"),
    "8 bits in blocks of 32": lambda _: BlockFormat(8, 32, symmetric=True, quantizer="round"),
    "8 bits by channel": ChannelFormat().block,
}


#: The two forms that lose most by channels out of scale.
SEARCHED: dict[str, Callable[[int], BlockFormat]] = {
    "4 bits in blocks of 256": lambda _: BlockFormat(4, 256, symmetric=False),
    "8 bits by channel": ChannelFormat().block,
}


@pytest.fixture(scope="module", params=[{}, {"conv_bias": True, "tie_word_embeddings": False}], ids=["plain", "biased"])
def clean(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean") / "tiny"
    return write_tiny(folder, dtype="F32", hidden_size=128, intermediate_size=256, **request.param)


def planted(clean: Path, to: Path, factors: Factors) -> Checkpoint:
    return open_checkpoint(plant_channels(clean, to, factors, channels=6))


def trace(checkpoint: Checkpoint) -> Trace:
    tokens = tuple(np.random.default_rng(0).integers(20, checkpoint.spec.vocab_size, 24).tolist())
    return MemoryReference(SourceWeights(checkpoint)).run([Run.prefill(tokens, caches_from=0)])[0]


def test_the_function_and_its_caches_are_the_same_bit_for_bit(clean: Path, tmp_path: Path) -> None:
    checkpoint = planted(clean, tmp_path / "planted", mixed)
    balanced = equalized(checkpoint)
    assert balanced.scaled > 50
    mine, theirs = trace(balanced), trace(checkpoint)
    if checkpoint.spec.tie_word_embeddings:
        np.testing.assert_array_equal(mine.hidden, theirs.hidden)
    reference, other = (MemoryReference(SourceWeights(one)) for one in (balanced, checkpoint))
    tokens = np.random.default_rng(1).integers(20, checkpoint.spec.vocab_size, (1, 24))
    (logits, state), (expected, before) = (one.step(tokens, one.new_state()) for one in (reference, other))
    np.testing.assert_array_equal(logits, expected)
    for got, wanted in zip(reference.read_caches(state), other.read_caches(before), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_codes_do_not_see_factors_that_are_powers_of_two(clean: Path, tmp_path: Path) -> None:
    balanced = equalized(planted(clean, tmp_path / "planted", always(64)))
    source = open_checkpoint(clean)
    assert equalized(source).scaled == 0
    spoiled = 0
    for matrix in matrices(source.spec):
        for part in matrix.parts:
            rows = source.tensors[part].shape[0]
            for form in (of(matrix.columns) for of in FORMATS.values()):
                mine, theirs = (quantize(one.rows(part, 0, rows), form) for one in (balanced, source))
                np.testing.assert_array_equal(mine.codes, theirs.codes, err_msg=part)
                unequal = quantize(Checkpoint.rows(balanced, part, 0, rows), form)
                spoiled += not np.array_equal(unequal.codes, theirs.codes)
    assert spoiled > 20


def test_rows_and_columns_agree_and_nothing_else_changes(clean: Path, tmp_path: Path) -> None:
    checkpoint = planted(clean, tmp_path / "planted", always(50))
    balanced = equalized(checkpoint)
    sent = pickle.loads(pickle.dumps(balanced))  # as to the processes that quantize
    for name, tensor in checkpoint.tensors.items():
        whole, plain = (one.rows(name, 0, tensor.shape[0]) for one in (balanced, checkpoint))
        np.testing.assert_array_equal(balanced.rows(name, 3, 9), whole[3:9])
        np.testing.assert_array_equal(sent.rows(name, 3, 9), whole[3:9])
        if whole.ndim == 2:
            np.testing.assert_array_equal(balanced.columns(name, 5, 70), whole[:, 5:70])
        mantissas = np.frexp(np.divide(whole, plain, out=np.ones_like(whole), where=plain != 0))[0]
        assert (mantissas == 0.5).all(), name  # times powers of two
        if not {name} & {*balanced.row_scales, *balanced.column_scales}:
            np.testing.assert_array_equal(whole, plain)
    for name in TABLES[:1]:
        assert name not in balanced.column_scales and name not in balanced.row_scales


def test_described_counts_channels(clean: Path, tmp_path: Path) -> None:
    described = equalized(planted(clean, tmp_path / "planted", always(64))).described()
    spec = open_checkpoint(clean).spec
    places = 4 * 128 + 4 * 128 + 4 * 256 + 2 * 128 + (0 if spec.tie_word_embeddings else 128)
    assert described["of"] == places
    assert 60 <= described["scaled"] <= 6 * (4 + 4 + 4 + 2 * 2 + 1)
    assert described["largest_factor"] in (64, 4096)  # where one channel has both kernel and C planted
    assert equalized(open_checkpoint(clean)).described() == {"scaled": 0, "of": places, "largest_factor": 1}


@pytest.fixture(scope="module")
def shipped() -> Checkpoint:
    return open_checkpoint(shipped_folder())


def test_the_shipped_model_stays_as_it_is(shipped: Checkpoint) -> None:
    assert equalized(shipped).scaled == 0


def divergence(checkpoint: Checkpoint, format_of: Callable[[int], BlockFormat], logits: NDArray[np.float32]) -> float:
    """KLD from `logits` of the model whose matrices but for the tables are as files hold them."""
    columns = {part: one.columns for one in matrices(checkpoint.spec) for part in one.parts if part not in TABLES}
    source = Weighted(checkpoint, first_layer_importance(checkpoint, checkpoint.spec))

    def override(name: str, start: int, stop: int) -> NDArray[np.float32] | None:
        if name not in columns:
            return None
        form = format_of(columns[name])
        return dequantize(blocks_of(source, name, start, stop, form), form, columns[name])

    found, expected = (_log_softmax(one) for one in (every_logit(SourceWeights(checkpoint, override)), logits))
    return float((np.exp(expected) * (expected - found)).sum(axis=-1).mean())


def every_logit(weights: SourceWeights) -> NDArray[np.float32]:
    """[B, S, V] on held-out text."""
    ids = ChatTokenizer(shipped_folder()).encode(held_out_text().text)[: 8 * 256]
    logits: NDArray[np.float32] = MemoryReference(weights).model(torch.tensor(ids).reshape(8, 256)).logits.numpy()
    return logits


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    z = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    return result


@pytest.fixture(scope="module")
def expected(shipped: Checkpoint) -> tuple[NDArray[np.float32], dict[str, float]]:
    """Logits of the shipped model, and its KLD in each format."""
    logits = every_logit(SourceWeights(shipped))
    return logits, {name: divergence(shipped, of, logits) for name, of in SEARCHED.items()}


@pytest.mark.parametrize("factors", [always(10), always(50), always(200), mixed], ids=["10", "50", "200", "mixed"])
def test_quality_does_not_depend_on_how_channels_are_scaled(
    factors: Factors, expected: tuple[NDArray[np.float32], dict[str, float]], tmp_path: Path
) -> None:
    logits, clean = expected
    checkpoint = open_checkpoint(plant_channels(shipped_folder(), tmp_path / "planted", factors))
    balanced = equalized(checkpoint)
    ratios = {name: divergence(balanced, of, logits) / clean[name] for name, of in SEARCHED.items()}
    assert max(ratios.values()) < 1.1, ratios
    name, of = next(iter(SEARCHED.items()))
    assert divergence(checkpoint, of, logits) > 2 * clean[name]
