"""Which checkpoint a file's weights are compared with: the source, or the source with its channels equalized.

Files in blocks are written from an equalized source (`lfm2export.equalized`), other exporters' are not. Nothing that a
folder says is asked: both are recomputed here, and the file's own values say which of them it holds. That choice
cannot hide a fault: both compute the same function, which :func:`broken_fold` proves of the second, and every weight is
then held to one and the same of them. So a factor that reached one of two tensors and not the other is a wrong value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from lfm2export.checkpoint import HEAD, Checkpoint
from lfm2export.equalized import Equalized, equalized
from lfm2export.quant.grid import HALF_MAX
from lfm2export.spec import CONV, ModelSpec
from lfm2export.verify.stored import Stored, StoredWeights

Array = NDArray[np.float32]

#: Rows of quantized matrices that are looked at where no float weight tells the two apart.
ROWS = 64


def held_source(stored: StoredWeights, checkpoint: Checkpoint, threads: int = 1) -> Checkpoint:
    """`checkpoint`, or `equalized(checkpoint)` where most values that tell them apart are those.

    Raises:
        ArtifactError: the file's data cannot be read.
        SourceError: the checkpoint's cannot.
    """
    if all(weight.kind != "blocks" for weight in stored.weights.values()):
        return checkpoint
    candidate = equalized(checkpoint, threads)
    votes = sum(_votes(weight, checkpoint, candidate) for weight in stored.weights.values() if weight.kind != "blocks")
    if votes == 0:
        votes = _votes_of_rows(stored, checkpoint, candidate)
    return candidate if votes > 0 else checkpoint


def as_float(values: Array, dtype: str) -> Array:
    """float32 `values` as a float32 or float16 initializer holds them."""
    if dtype == "float32":
        return values
    return np.clip(values, -HALF_MAX, HALF_MAX).astype(np.float16).astype(np.float32)


def _votes(weight: Stored, checkpoint: Checkpoint, candidate: Equalized) -> int:
    """Values of a float weight that are the candidate's alone, less those that are the source's alone."""
    votes, offset = 0, 0
    for part, rows in zip(weight.parts, weight.rows, strict=True):
        if part in candidate.row_scales:
            plain, scaled = (as_float(one.rows(part, 0, rows), weight.values.dtype) for one in (checkpoint, candidate))
            held = weight.floats(offset, offset + rows)
            differ = plain != scaled
            votes += int((differ & (held == scaled)).sum()) - int((differ & (held == plain)).sum())
        offset += rows
    return votes


def _votes_of_rows(stored: StoredWeights, checkpoint: Checkpoint, candidate: Equalized) -> int:
    """The same of ROWS quantized rows: which of both each is nearer to."""
    votes = 0
    for _, (weight, part, row) in zip(range(ROWS), _scaled_rows(stored, candidate), strict=False):
        place = weight.first(part) + row
        held = weight.floats(place, place + 1)
        far, near = (float(np.square(held - one.rows(part, row, row + 1)).sum()) for one in (checkpoint, candidate))
        votes += int(near < far) - int(far < near)
    return votes


def _scaled_rows(stored: StoredWeights, candidate: Equalized) -> Iterator[tuple[Stored, str, int]]:
    for weight in stored.weights.values():
        for part in weight.parts if weight.kind == "blocks" else ():
            for row in np.flatnonzero(candidate.row_scales.get(part, np.ones(0)) != 1).tolist():
                yield weight, part, row


def broken_fold(rows: Mapping[str, Array], columns: Mapping[str, Array], spec: ModelSpec) -> str | None:
    """The first tensor whose scales change what the model computes or caches; None where all of them cancel.

    rows, columns: what a tensor's rows and columns are multiplied by, where that is not 1. Every factor has to be a
    power of two, and their product along every path through a layer 1, exactly.
    """
    for name, scale in (*rows.items(), *columns.items()):
        if not (np.isfinite(scale).all() and (np.frexp(scale)[0] == 0.5).all()):
            return name
    left = _Left(rows, columns, spec.source_tensors())
    for layer, kind in enumerate(spec.layer_types):
        left.layer(f"model.layers.{layer}.", kind == CONV, spec.hidden_size)
    if not spec.tie_word_embeddings:
        left.cancel(left.row("model.embedding_norm.weight"), HEAD)
    return left.first()


class _Left:
    """Scales that are not cancelled yet: those of a path are taken out when their product is 1."""

    def __init__(self, rows: Mapping[str, Array], columns: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]):
        self.rows, self.columns, self.shapes = dict(rows), dict(columns), shapes
        self.broken: list[str] = []

    def row(self, name: str) -> Array:
        found = self.rows.pop(name, None)
        return found if found is not None else np.ones(self.shapes[name][:1], np.float32)

    def cancel(self, product: Array, taker: str) -> None:
        """What reaches column k of `taker` has been multiplied by product[k]."""
        column = self.columns.pop(taker, None)
        if not (product * (column if column is not None else np.float32(1)) == 1).all():
            self.broken.append(taker)

    def layer(self, prefix: str, convolves: bool, hidden: int) -> None:
        readers = ["conv.in_proj"] if convolves else [f"self_attn.{name}_proj" for name in "qkv"]
        for norm, names in (("operator_norm", readers), ("ffn_norm", ["feed_forward.w1", "feed_forward.w3"])):
            gain = self.row(f"{prefix}{norm}.weight")
            for name in names:
                self.cancel(gain, f"{prefix}{name}.weight")
        self.cancel(self.row(f"{prefix}feed_forward.w3.weight"), f"{prefix}feed_forward.w2.weight")
        if convolves:
            kernel, in_proj = (self._with_bias(f"{prefix}conv.{name}") for name in ("conv", "in_proj"))
            B, C, x = (in_proj[part * hidden : (part + 1) * hidden] for part in range(3))
            if not ((B == 1).all() and (x == 1).all()):  # B * x is the state
                self.broken.append(f"{prefix}conv.in_proj.weight")
            self.cancel(kernel * C, f"{prefix}conv.out_proj.weight")

    def _with_bias(self, module: str) -> Array:
        weight = self.row(f"{module}.weight")
        if f"{module}.bias" in self.shapes and not (self.row(f"{module}.bias") == weight).all():
            self.broken.append(f"{module}.bias")
        return weight

    def first(self) -> str | None:
        """Broken, or scaled where nothing undoes it."""
        others = [name for left in (self.rows, self.columns) for name, one in left.items() if not (one == 1).all()]
        return next(iter((*self.broken, *others)), None)
