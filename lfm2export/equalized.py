"""A checkpoint of the same function whose matrices have about equally large columns: quantized files are written from
it.

    norm gain            -> columns of what reads it    in_proj | q, k, v | w1, w3 | an untied head
    rows of w3           -> columns of w2
    the conv's kernel    -> columns of its out_proj     and its bias; a factor of C's rows goes here too

`quant.folding` says why each is exact and leaves the caches as PyTorch has them; here every factor is a power of two,
so logits are the same too, bit for bit within float32's range. C times the convolution is what out_proj reads: its
columns are all that a factor of either shows in, and C's rows, whose scales follow them, may keep theirs.

Each matrix's columns are brought to their median. KLD of the shipped model's files, 4,096 tokens of held-out text
prefilled (standard error 1.5 to 2 %); planted are 12 channels of each of these places and of C, in every layer, so many
times as large, what reads them as much smaller ("mixed": 1/200 to 200, evenly in their logarithms):

                                       q4, blocks of 32   of 256      q8, channels   blocks
    as trained, either way             .00435             .00825      .00074         .00017
    planted 10         as it is        .0399              .0799       .0068          .0013
                       equalized       .0045              .0086       .00077         .00018
    planted 50         as it is        .190               .372        .130           .023
                       equalized       .0045              .0085       .00074         .00017
    planted 200        as it is        .56                2.29        2.39           .43
                       equalized       .0046              .0087       .00076         .00017
    planted, mixed     as it is        .51                2.54        .48            .036
                       equalized       .0046              .0089       .00075         .00018

A factor of 64 leaves every code as it was. Calibrated on 4,096 tokens, q4 in blocks of 32 has .0040 as trained, .15
planted with 50 as it is, and .0042 equalized.

The other rule, gains and rows to their medians, takes such factors away as well, but moves into the columns what
training put into the gains, where it costs: as trained .00575, .0125, .00104 and .00023, and if it moves factors of 4
and more alone .00437, .00859, .00076 and .00017 (planted 50: .0045, .0091, .00082, .00019). Half of each rule
(geometric means) is between the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfm2export.checkpoint import HEAD, Checkpoint
from lfm2export.pieces import row_ranges
from lfm2export.quant.equalize import Exponents, Norms, column_squares, exponents, row_norms
from lfm2export.spec import CONV

Array = NDArray[np.float32]

#: Rows that tell how large a matrix's columns are, to 4 %.
RUNS, RUN = 16, 16


@dataclass(frozen=True)
class Fold:
    """One place: 2**exponents [n] taken from the n rows of each of `givers` and given to the columns of `takers`."""

    exponents: Exponents
    givers: tuple[str, ...]
    takers: tuple[str, ...]


@dataclass(frozen=True)
class Equalized(Checkpoint):
    """The checkpoint after `folds`. Rows of any tensor are its own times powers of two; nothing else differs.

    row_scales, column_scales: what rows [N] and columns [K] of a tensor are multiplied by, where that is not 1.
    """

    folds: tuple[Fold, ...]
    row_scales: Mapping[str, Array]
    column_scales: Mapping[str, Array]

    def rows(self, name: str, start: int, stop: int) -> Array:
        found = super().rows(name, start, stop)
        by_row, by_column = self.row_scales.get(name), self.column_scales.get(name)
        if by_row is not None:
            found *= by_row[start:stop].reshape(-1, *[1] * (found.ndim - 1))
        if by_column is not None:
            found *= by_column
        return found

    def columns(self, name: str, start: int, stop: int) -> Array:
        found = super().columns(name, start, stop)
        by_row, by_column = self.row_scales.get(name), self.column_scales.get(name)
        if by_row is not None:
            found *= by_row[:, None]
        if by_column is not None:
            found *= by_column[start:stop]
        return found

    @property
    def scaled(self) -> int:
        """How many channels are scaled."""
        return sum(int((fold.exponents != 0).sum()) for fold in self.folds)

    def described(self) -> dict[str, int]:
        """As JSON values: how many channels were scaled, of how many, and by how much at most."""
        largest = max(int(np.abs(fold.exponents).max(initial=0)) for fold in self.folds)
        return {
            "scaled": self.scaled,
            "of": sum(len(fold.exponents) for fold in self.folds),
            "largest_factor": 2**largest,
        }


def equalized(checkpoint: Checkpoint, threads: int = 1) -> Equalized:
    """`checkpoint` with the columns of every place brought to their median, for which it is read in part.

    Raises:
        SourceError, TensorError: they cannot be read, or hold NaN or Inf.
    """
    spec = checkpoint.spec
    with ThreadPoolExecutor(threads) as pool:
        layers = pool.map(partial(_layer, checkpoint), range(spec.num_hidden_layers))
        folds = [fold for layer in layers for fold in layer]
    if not spec.tie_word_embeddings:
        folds.append(_fold_of_norm(checkpoint, "model.embedding_norm.weight", (HEAD,)))
    return after(checkpoint, tuple(folds))


def after(checkpoint: Checkpoint, folds: tuple[Fold, ...]) -> Equalized:
    """`checkpoint` with these folds, whatever they are. No tensor gives, nor takes, twice."""
    one = np.float32(1)
    scaled = [fold for fold in folds if fold.exponents.any()]
    rows = {name: np.ldexp(one, -fold.exponents) for fold in scaled for name in fold.givers}
    columns = {name: np.ldexp(one, fold.exponents) for fold in scaled for name in fold.takers}
    plain: dict[str, Any] = {field.name: getattr(checkpoint, field.name) for field in fields(Checkpoint)}
    return Equalized(**plain, folds=folds, row_scales=rows, column_scales=columns)


def _layer(checkpoint: Checkpoint, layer: int) -> list[Fold]:
    prefix, hidden = f"model.layers.{layer}.", checkpoint.spec.hidden_size
    conv, ffn = f"{prefix}conv.", f"{prefix}feed_forward."
    convolves = checkpoint.spec.layer_types[layer] == CONV
    readers = (f"{conv}in_proj.weight",) if convolves else tuple(f"{prefix}self_attn.{n}_proj.weight" for n in "qkv")
    found = [
        _fold_of_norm(checkpoint, f"{prefix}operator_norm.weight", readers),
        _fold_of_norm(checkpoint, f"{prefix}ffn_norm.weight", (f"{ffn}w1.weight", f"{ffn}w3.weight")),
        _fold(checkpoint, (f"{ffn}w3.weight",), (f"{ffn}w2.weight",), _row_norms(checkpoint, f"{ffn}w3.weight")),
    ]
    if convolves:
        C = _row_norms(checkpoint, f"{conv}in_proj.weight", hidden, hidden)
        kernel = _row_norms(checkpoint, f"{conv}conv.weight")
        givers = tuple(name for name in (f"{conv}conv.weight", f"{conv}conv.bias") if name in checkpoint.tensors)
        found.append(_fold(checkpoint, givers, (f"{conv}out_proj.weight",), kernel * C))
    return found


def _fold_of_norm(checkpoint: Checkpoint, norm: str, readers: tuple[str, ...]) -> Fold:
    return _fold(checkpoint, (norm,), readers, _row_norms(checkpoint, norm))


def _fold(checkpoint: Checkpoint, givers: tuple[str, ...], takers: tuple[str, ...], sizes: Norms) -> Fold:
    """sizes [n]: how large what `takers` read is, channel by channel."""
    squares = np.zeros(len(sizes))
    for name in takers:
        for start, stop in _runs(checkpoint.tensors[name].shape[0]):
            squares += column_squares(checkpoint.rows(name, start, stop))
    return Fold(exponents(np.sqrt(squares), sizes), givers, takers)


def _runs(rows: int) -> list[tuple[int, int]]:
    """[start, stop) of RUNS runs of RUN rows, evenly spread; all rows where there are no more than that."""
    if rows <= RUNS * RUN:
        return [(0, rows)]
    return [(run * rows // RUNS, run * rows // RUNS + RUN) for run in range(RUNS)]


def _row_norms(checkpoint: Checkpoint, name: str, first: int = 0, count: int | None = None) -> Norms:
    """Of rows [first, first + count) of a tensor; of all."""
    shape = checkpoint.tensors[name].shape
    cuts = row_ranges((count if count is not None else shape[0], *shape[1:]))
    return np.concatenate([row_norms(checkpoint.rows(name, first + start, first + stop)) for start, stop in cuts])
