"""Weights as `lfm2export.calibrate` would make them with one thing changed: for `variants`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from lfm2export.calibrate import SMALL, Choice
from lfm2export.calibrate.activations import Scratch, Sequences, workers
from lfm2export.calibrate.gradients import OutputMoments, output_moments
from lfm2export.calibrate.layers import Stream
from lfm2export.calibrate.matrix import MOVED, Quantized, keep_within, quantize_matrix
from lfm2export.calibrate.student import Student
from lfm2export.calibrate.tuning import tune
from lfm2export.checkpoint import Checkpoint
from lfm2export.measures import Array
from lfm2export.progress import Progress
from lfm2export.quant import dequantize, rounded
from lfm2export.quant.folding import activation_scale
from lfm2export.quant.gptq import DAMPING
from lfm2export.recipes import TABLES, Options, table_format
from lfm2export.reference.stream import StreamReference
from lfm2export.reference.weights import Override, SourceWeights
from lfm2export.spec import CONV
from lfm2export.weights import BlockFormat, QuantizedBlocks

#: Where a scale per column can be folded, by the matrix whose columns it scales.
Place = Literal["operator norm", "kernel", "ffn norm", "gate"]
NORMS: tuple[Place, ...] = ("operator norm", "ffn norm")
PRODUCTS: tuple[Place, ...] = ("kernel", "gate")

#: The place of each of a layer's four matrices, by whether it is a convolution's; no fold reaches attention's out_proj
#: without changing its cache.
PLACES: dict[bool, tuple[Place | None, ...]] = {
    True: ("operator norm", "kernel", "ffn norm", "gate"),
    False: ("operator norm", None, "ffn norm", "gate"),
}

#: What feeds the matrix at a place.
FEEDERS: dict[Place, str] = {
    "operator norm": "operator_norm.weight",
    "kernel": "conv.conv.weight",
    "ffn norm": "ffn_norm.weight",
    "gate": "feed_forward.w3.weight",
}

#: Powers of `activation_scale` that are tried; 0, no fold, always is.
EXPONENTS = (0.25, 0.5, 0.75)

#: (exponent, scale [K], the matrix quantized, the weights that were quantized)
Tried = tuple[float, Array, Quantized, dict[str, Array]]


@dataclass(frozen=True)
class Variant:
    """folds: the places where a fold is tried, and kept if it lowers the matrix's error on held-out inputs.

    power_of_two: scales are rounded to powers of two, so that folding is exact in floats too. float_inputs: matrices
    are fitted to what the float model feeds them, not to what comes through everything quantized before. alike: every
    token and output counts the same, as in models too large to be run backwards.
    """

    name: str
    block_size: int = 32
    folds: tuple[Place, ...] = ()
    power_of_two: bool = False
    damping: float = DAMPING
    float_inputs: bool = False
    alike: bool = False


@dataclass
class Made:
    """By tensor: blocks of each matrix, the weights that they were made of, and other tensors that a fold changed."""

    form: BlockFormat
    blocks: dict[str, QuantizedBlocks] = field(default_factory=dict)
    sources: dict[str, Array] = field(default_factory=dict)
    floats: dict[str, Array] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)

    def weights(self) -> dict[str, Array]:
        return self.floats | {
            name: dequantize(blocks, self.form, self.sources[name].shape[1]) for name, blocks in self.blocks.items()
        }


def make(
    checkpoint: Checkpoint, sequences: Sequences, variant: Variant, folder: Path, threads: int, progress: Progress
) -> tuple[dict[str, Array], Made]:
    """What the variant's file would hold, by source name: tables rounded, matrices dequantized, folded tensors."""
    table = table_format("q4", Options())
    assert table is not None
    found = Made(BlockFormat(4, variant.block_size, symmetric=False))
    for name in TABLES:
        if name in checkpoint.tensors:
            rows = checkpoint.rows(name, 0, checkpoint.tensors[name].shape[0])
            found.floats[name] = rounded(rows, table)
    with workers(threads) as pool:
        scratch, outputs = Scratch(folder), None
        if not variant.alike and checkpoint.spec.num_parameters < SMALL:
            outputs = output_moments(checkpoint, sequences, scratch, pool, progress=progress)
        quantize_layers(checkpoint, sequences, variant, found, outputs, scratch, pool, progress)
        tune_scales(checkpoint, sequences, found, pool, progress)
    return found.weights(), found


def quantize_layers(
    checkpoint: Checkpoint,
    sequences: Sequences,
    variant: Variant,
    found: Made,
    outputs: OutputMoments | None,
    scratch: Scratch,
    pool: ThreadPoolExecutor,
    progress: Progress,
) -> None:
    """Layer by layer, as `calibrate`."""
    tables = SourceWeights(checkpoint, override(dict(found.floats)))
    streams = [Stream(StreamReference(tables), sequences, scratch, pool)]
    if variant.float_inputs:
        streams.append(Stream(StreamReference(SourceWeights(checkpoint)), sequences, scratch, pool, "float"))
    layers = checkpoint.spec.num_hidden_layers
    for layer in range(layers):
        formers: list[Array | None] = [None for _ in streams]
        for stream in streams:
            stream.enter(layer)
        for index, linear in enumerate(streams[0].linears):
            progress("calibrate", 4 * layer + index, 4 * layers, "matrices")
            formers = [stream.inputs(index, former) for stream, former in zip(streams, formers, strict=True)]
            place = PLACES[checkpoint.spec.layer_types[layer] == CONV][index]
            inputs = formers[-1]
            assert inputs is not None
            source = {name: weight.copy() for name, weight in linear.weights().items()}  # `put` writes over it
            exponent, scale, quantized, sources = best_fold(
                source, inputs, sequences.fitted_rows, place, variant, outputs, scratch, pool
            )
            for name, blocks in quantized.blocks.items():
                whole = np.divide(dequantize(blocks, found.form, len(scale)), scale)
                linear.put(name, partial(_part, whole))
            found.blocks |= quantized.blocks
            found.sources |= sources
            found.choices.append(quantized.choice)
            if exponent and place is not None:
                found.taken.append(f"layer {layer}, {place}: {exponent:g}")
                divide_feeder(checkpoint, layer, place, scale, found)
        for stream, former in zip(streams, formers, strict=True):
            assert former is not None
            stream.finish(former)


def best_fold(
    parts: Mapping[str, Array],
    inputs: Array,
    fitted: int,
    place: Place | None,
    variant: Variant,
    outputs: OutputMoments | None,
    scratch: Scratch,
    pool: ThreadPoolExecutor,
) -> Tried:
    """What has the least error on held-out inputs.

    Errors are those of outputs, which a fold leaves as they are, so they can be compared.
    """
    form = BlockFormat(4, variant.block_size, symmetric=False)
    weight = np.mean([np.abs(rows).mean(axis=0) for rows in parts.values()], axis=0)
    magnitude = np.abs(inputs[:fitted]).mean(axis=0)
    tried = []
    for exponent in (0.0, *(EXPONENTS if place in variant.folds else ())):
        scale = activation_scale(magnitude, weight, exponent)
        if variant.power_of_two:
            scale = np.exp2(np.rint(np.log2(scale))).astype(np.float32)
        sources = {name: rows * scale for name, rows in parts.items()}
        scaled = scratch.array("scaled", inputs.shape)
        np.divide(inputs, scale, out=scaled)
        quantized = quantize_matrix(sources, form, scaled, fitted, scratch, pool, variant.damping, outputs)
        tried.append((exponent, scale, quantized, sources))
    return least(tried)


def _part(whole: Array, start: int, stop: int) -> Array:
    return whole[start:stop]


def least(tried: Sequence[Tried]) -> Tried:
    return min(tried, key=lambda one: one[2].choice.after)


def divide_feeder(checkpoint: Checkpoint, layer: int, place: Place, scale: Array, found: Made) -> None:
    """What feeds the matrix at `place` divided by `scale`; rows of w3 are in blocks already, and their scales are."""
    name = f"model.layers.{layer}.{FEEDERS[place]}"
    if place == "gate":
        blocks = found.blocks[name]
        halves = (blocks.scales.astype(np.float32) / scale[:, None]).astype(np.float16)
        found.blocks[name] = replace(blocks, scales=halves)
        found.sources[name] = found.sources[name] / scale[:, None]
        return
    for one in (name, name.replace(".weight", ".bias")):
        if one in checkpoint.tensors:
            values = checkpoint.rows(one, 0, len(scale))
            found.floats[one] = values / scale.reshape(-1, *(1 for _ in values.shape[1:]))


def tune_scales(
    checkpoint: Checkpoint, sequences: Sequences, found: Made, pool: ThreadPoolExecutor, progress: Progress
) -> None:
    held = {name: (found.form, blocks) for name, blocks in found.blocks.items()}
    fixed = [part for choice in found.choices if choice.method not in MOVED for part in choice.parts]
    student = Student(StreamReference(SourceWeights(checkpoint, override(found.floats))), held, fixed)
    fitted, held_out = sequences.tokens[: sequences.fitted], sequences.tokens[sequences.fitted :]
    source = StreamReference(SourceWeights(checkpoint))
    tuned, scales = tune(student, source, fitted, held_out, pool, progress=progress)
    for name, moved in scales.items() if tuned.kept else ():
        before = found.blocks[name]
        found.blocks[name] = keep_within(found.sources[name], found.form, replace(before, scales=moved), before)


def override(values: Mapping[str, Array]) -> Override:
    def rows(name: str, start: int, stop: int) -> Array | None:
        return values[name][start:stop] if name in values else None

    return rows
