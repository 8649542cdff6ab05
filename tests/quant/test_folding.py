"""Folds are exact: logits with folded weights equal the model's own, and caches change only where it is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lfm2export.checkpoint import open_checkpoint
from lfm2export.errors import TensorError
from lfm2export.hub import shipped_folder
from lfm2export.quant.folding import (
    LARGEST,
    activation_scale,
    fold_c,
    fold_gate,
    fold_kernel,
    fold_norm,
    fold_product,
    fold_values,
)
from lfm2export.reference import Run, load_reference, torch_threads
from lfm2export.reference.run import Trace
from lfm2export.spec import CONV, ModelSpec
from tiny import write_tiny

Array = NDArray[np.float32]
Tensors = dict[str, Array]
Fold = Callable[[Tensors, str, str, ModelSpec, Callable[..., Array]], None]

#: Logits reach 13; both sides are float32 sums in one order, of numbers that were rounded once more.
CLOSE = 1e-5


def norms(tensors: Tensors, layer: str, kind: str, spec: ModelSpec, scale: Callable[..., Array]) -> None:
    first = [f"{layer}conv.in_proj.weight"]
    if kind != CONV:
        first = [f"{layer}self_attn.{name}_proj.weight" for name in "qkv"]
    second = [f"{layer}feed_forward.{name}.weight" for name in ("w1", "w3")]
    for norm, readers in ((f"{layer}operator_norm.weight", first), (f"{layer}ffn_norm.weight", second)):
        gain, folded = fold_norm(tensors[norm], [tensors[name] for name in readers], scale(spec.hidden_size))
        tensors.update(zip((norm, *readers), (gain, *folded), strict=True))


def gate(tensors: Tensors, layer: str, kind: str, spec: ModelSpec, scale: Callable[..., Array]) -> None:
    w3, w2 = (f"{layer}feed_forward.{name}.weight" for name in ("w3", "w2"))
    tensors[w3], tensors[w2] = fold_gate(tensors[w3], tensors[w2], scale(spec.intermediate_size))


def kernel(tensors: Tensors, layer: str, kind: str, spec: ModelSpec, scale: Callable[..., Array]) -> None:
    if kind == CONV:
        taps, bias, out = (f"{layer}conv.{name}" for name in ("conv.weight", "conv.bias", "out_proj.weight"))
        folded, offset, columns = fold_kernel(tensors[taps], tensors.get(bias), tensors[out], scale(spec.hidden_size))
        tensors[taps], tensors[out] = folded, columns
        if offset is not None:
            tensors[bias] = offset


def c_rows(tensors: Tensors, layer: str, kind: str, spec: ModelSpec, scale: Callable[..., Array]) -> None:
    if kind == CONV:
        rows, bias, out = (f"{layer}conv.{name}" for name in ("in_proj.weight", "in_proj.bias", "out_proj.weight"))
        folded, offset, columns = fold_c(tensors[rows], tensors.get(bias), tensors[out], scale(spec.hidden_size))
        tensors[rows], tensors[out] = folded, columns
        if offset is not None:
            tensors[bias] = offset


def product(tensors: Tensors, layer: str, kind: str, spec: ModelSpec, scale: Callable[..., Array]) -> None:
    if kind == CONV:
        rows, bias = (f"{layer}conv.{name}" for name in ("in_proj.weight", "in_proj.bias"))
        tensors[rows], offset = fold_product(tensors[rows], tensors.get(bias), scale(spec.hidden_size))
        if offset is not None:
            tensors[bias] = offset


def values(tensors: Tensors, layer: str, kind: str, spec: ModelSpec, scale: Callable[..., Array]) -> None:
    if kind != CONV:
        v, out = (f"{layer}self_attn.{name}_proj.weight" for name in ("v", "out"))
        tensors[v], tensors[out] = fold_values(tensors[v], tensors[out], scale(spec.num_key_value_heads, spec.head_dim))


FOLDS: tuple[Fold, ...] = (norms, gate, kernel, c_rows, product, values)


@pytest.fixture(scope="module", params=["tiny", "biased", "shipped"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "shipped":
        return shipped_folder()
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny", conv_bias=request.param == "biased")


def traced(folder: Path, fold: Fold | None) -> tuple[Array, Trace]:
    """Logits [T, V] and caches of the model in `folder` after `fold` of every layer by scales from 1/4 to 4."""
    checkpoint = open_checkpoint(folder)
    spec = checkpoint.spec
    random = np.random.default_rng(7)
    tensors = {name: checkpoint.rows(name, 0, tensor.shape[0]) for name, tensor in checkpoint.tensors.items()}
    if fold is not None:
        for layer, kind in enumerate(spec.layer_types):
            prefix = f"model.layers.{layer}."
            fold(tensors, prefix, kind, spec, lambda *shape: np.exp2(random.uniform(-2, 2, shape)).astype(np.float32))
    with torch_threads(1):
        reference = load_reference(folder, "memory", override=lambda name, start, stop: tensors[name][start:stop])
        trace = reference.run([Run.prefill(np.random.default_rng(1).integers(0, 500, 40).tolist())])[0]
        return reference.logits(trace.hidden), trace


@pytest.mark.parametrize("fold", FOLDS, ids=lambda fold: fold.__name__)
def test_logits_do_not_change(folder: Path, fold: Fold) -> None:
    plain, before = traced(folder, None)
    folded, after = traced(folder, fold)
    np.testing.assert_allclose(folded, plain, atol=CLOSE * max(1.0, float(np.abs(plain).max())), rtol=0)
    for theirs, mine in ((before.keys, after.keys), (before.products, after.products)):
        for layer, tensor in theirs.items():
            np.testing.assert_allclose(mine[layer], tensor, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("fold", FOLDS, ids=lambda fold: fold.__name__)
def test_only_the_values_fold_changes_a_cache(tmp_path: Path, fold: Fold) -> None:
    folder = write_tiny(tmp_path / "tiny")
    (_, before), (_, after) = traced(folder, None), traced(folder, fold)
    changed = max(float(np.abs(after.values[layer] - held).max()) for layer, held in before.values.items())
    assert (changed > 0.05) == (fold is values)


def test_a_fold_that_forgets_one_side_is_seen(tmp_path: Path) -> None:
    """The near miss: these tests would see a gain that is divided while only one of its readers is multiplied."""

    def half(tensors: Tensors, layer: str, kind: str, spec: ModelSpec, scale: Callable[..., Array]) -> None:
        norm, w1 = f"{layer}ffn_norm.weight", f"{layer}feed_forward.w1.weight"
        tensors[norm], (tensors[w1],) = fold_norm(tensors[norm], [tensors[w1]], scale(spec.hidden_size))

    folder = write_tiny(tmp_path / "tiny")
    assert np.abs(traced(folder, half)[0] - traced(folder, None)[0]).max() > 0.05


def test_scales_follow_inputs_and_weights() -> None:
    magnitude, weight = np.array([4, 1, 1, 0], np.float32), np.array([1, 1, 4, 1], np.float32)
    np.testing.assert_array_equal(activation_scale(magnitude, weight, 0), np.ones(4))
    scale = activation_scale(magnitude, weight, 0.5)
    np.testing.assert_allclose(scale, [2, 1, 0.5, 1], rtol=1e-6)
    wild = activation_scale(np.array([1e9, 1e-9], np.float32), np.ones(2, np.float32), 1)
    np.testing.assert_allclose(wild, [LARGEST, 1 / LARGEST], rtol=1e-5)
    assert (activation_scale(np.zeros(3, np.float32), np.ones(3, np.float32), 1) == 1).all()


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_a_scale_must_be_positive(bad: float) -> None:
    with pytest.raises(TensorError, match="finite numbers above 0"):
        fold_gate(np.ones((4, 3), np.float32), np.ones((3, 4), np.float32), np.array([1, 1, bad, 1], np.float32))


def test_a_scale_must_fit() -> None:
    with pytest.raises(TensorError, match="expected"):
        fold_norm(np.ones(3, np.float32), [], np.ones(4, np.float32))
    with pytest.raises(TensorError, match="do not fit"):
        fold_values(np.ones((6, 4), np.float32), np.ones((4, 10), np.float32), np.ones((2, 3), np.float32))
