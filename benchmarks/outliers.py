"""Checkpoints of the same function with outlier channels: a few of each place many times as large as they were.

What a channel is multiplied by is divided out of what reads it, as `quant.folding` says.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from lfm2export.checkpoint import Checkpoint, open_checkpoint
from lfm2export.quant.folding import fold_c, fold_gate, fold_kernel, fold_norm
from lfm2export.spec import CONV

Array = NDArray[np.float32]

#: n, random -> n factors.
Factors = Callable[[int, np.random.Generator], Array]


def always(factor: float) -> Factors:
    return lambda count, _: np.full(count, factor, np.float32)


def mixed(count: int, random: np.random.Generator) -> Array:
    """Between 1/200 and 200, evenly in their logarithms."""
    return np.exp(random.uniform(-np.log(200), np.log(200), count)).astype(np.float32)


def plant_channels(source: Path, to: Path, factors: Factors, *, channels: int = 12, seed: int = 0) -> Path:
    """A copy of the checkpoint `source` in float32, with `channels` of each place of each layer scaled by `factors`."""
    checkpoint = open_checkpoint(source)
    tensors = {name: checkpoint.rows(name, 0, one.shape[0]) for name, one in checkpoint.tensors.items()}
    random = np.random.default_rng(seed)

    def scale(count: int) -> Array:
        found = np.ones(count, np.float32)
        found[random.choice(count, channels, replace=False)] = 1 / factors(channels, random)
        return found

    for layer in range(checkpoint.spec.num_hidden_layers):
        _plant(checkpoint, tensors, layer, scale)
    if not checkpoint.spec.tie_word_embeddings:
        _plant_norm(tensors, "model.embedding_norm.weight", ["lm_head.weight"], scale(checkpoint.spec.hidden_size))
    shutil.copytree(source, to, ignore=shutil.ignore_patterns("*.safetensors*"))
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, to / "model.safetensors")
    return to


def _plant(checkpoint: Checkpoint, tensors: dict[str, Array], layer: int, scale: Callable[[int], Array]) -> None:
    prefix, hidden = f"model.layers.{layer}.", checkpoint.spec.hidden_size
    convolves = checkpoint.spec.layer_types[layer] == CONV
    readers = ["conv.in_proj"] if convolves else [f"self_attn.{name}_proj" for name in "qkv"]
    for norm, names in (("operator_norm", readers), ("ffn_norm", ["feed_forward.w1", "feed_forward.w3"])):
        weights = [f"{prefix}{name}.weight" for name in names]
        _plant_norm(tensors, f"{prefix}{norm}.weight", weights, scale(hidden))
    w3, w2 = (f"{prefix}feed_forward.{name}.weight" for name in ("w3", "w2"))
    tensors[w3], tensors[w2] = fold_gate(tensors[w3], tensors[w2], scale(checkpoint.spec.intermediate_size))
    if convolves:
        out = f"{prefix}conv.out_proj.weight"
        for module, fold in (("conv", fold_kernel), ("in_proj", fold_c)):
            weight, bias = (f"{prefix}conv.{module}.{kind}" for kind in ("weight", "bias"))
            tensors[weight], moved, tensors[out] = fold(tensors[weight], tensors.get(bias), tensors[out], scale(hidden))
            if moved is not None:
                tensors[bias] = moved


def _plant_norm(tensors: dict[str, Array], norm: str, readers: list[str], scale: Array) -> None:
    tensors[norm], folded = fold_norm(tensors[norm], [tensors[name] for name in readers], scale)
    tensors.update(zip(readers, folded, strict=True))
