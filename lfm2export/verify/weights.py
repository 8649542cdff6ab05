"""Every stored weight against the source's, a piece at a time: what was rounded is rounded right, the rest is equal.

A float32 weight is the source's; a float16 weight is its nearest float16 number. A weight in blocks is judged on the
grid that its block has, whoever chose it: each code is the nearest point of that grid to its weight (so the error is at
most half a scale wherever the grid reaches), and the block's squared error is not above plain rounding's, which bounds
what a grid may leave out of its range. Layer 0 may have been searched with its columns weighed (`first_layer`): a block
of it has to be at most plain rounding in its plain error or in the one that is weighed so. A wrong scale or zero point
moves the grid off its codes, so it shows here.

Damage is rare, a method is everywhere: where more than MOVED of a matrix's blocks break that rule, its codes were moved
on purpose, as calibration does, and each block is held to the limits of `quant.moved` instead; so is every matrix of
as many bits where that holds for most of them, for calibration leaves a small matrix nearly as it was. A matrix that is
wrong throughout (transposed, another's) is beyond those limits throughout.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfm2export.checkpoint import Checkpoint
from lfm2export.first_layer import first_layer_importance
from lfm2export.progress import Progress, silent
from lfm2export.quant.blocks import dequantize, in_blocks, unpack
from lfm2export.quant.channel import quantize_channel
from lfm2export.quant.moved import beyond
from lfm2export.quant.rounding import quantize_round
from lfm2export.verify.figures import WeightMeasure
from lfm2export.verify.folds import as_float
from lfm2export.verify.stored import Stored, StoredWeights
from lfm2export.weights import QuantizedBlocks

Floats = NDArray[np.float32]

#: Float32 values in a piece: what is made of it stays in a core's cache.
PIECE = 1 << 17

#: Rows in a piece of int8 codes stored transposed.
LONG_PIECE = 1024

#: How far from its weight, in codes, a nearest code may lie: a half, and what float32 loses of weight / scale.
NEAREST = 0.5 + 1e-3

#: The share of a matrix's blocks that no fault is expected to reach, and every calibration does.
MOVED = 0.05

#: Plain rounding, by the quantizer that a format names.
PLAIN = {"round": quantize_round, "search": quantize_round, "channel": quantize_channel}

#: Squared error over plain rounding's that still counts as equal: both are sums in float32.
NOT_WORSE = 1.001


def measure_weights(
    stored: StoredWeights, checkpoint: Checkpoint, progress: Progress = silent, threads: int | None = None
) -> tuple[WeightMeasure, ...]:
    """One measure per initializer, in the file's order. threads: None takes one a core.

    checkpoint: what the file was written from, see `folds.held_source`.

    Raises:
        ArtifactError: the file's data cannot be read.
        SourceError: the checkpoint's cannot.
    """
    total = sum(math.prod(weight.shape) for weight in stored.weights.values())
    importance = first_layer_importance(checkpoint, checkpoint.spec)
    done, found = 0, list[_Measured]()
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        for measured in pool.map(lambda weight: _measure(weight, checkpoint, importance), stored.weights.values()):
            found.append(measured)
            done += math.prod(measured.nearest.shape)
            progress("weights", done, total, "values")
    calibrated = {dtype for dtype in {one.nearest.dtype for one in found} if _calibrated(found, dtype)}
    return tuple(one.moved if one.touched or one.nearest.dtype in calibrated else one.nearest for one in found)


@dataclass(frozen=True)
class _Measured:
    """One initializer by both rules. touched: more than MOVED of its blocks break the rule of nearest codes."""

    nearest: WeightMeasure
    moved: WeightMeasure
    touched: bool


def _calibrated(found: Iterable[_Measured], dtype: str) -> bool:
    """Do most matrices of `dtype` have moved codes? One damaged matrix must not loosen the rule for the others."""
    same = [one.touched for one in found if one.nearest.dtype == dtype]
    return sum(same) > len(same) / 2


def _measure(stored: Stored, checkpoint: Checkpoint, importance: Mapping[str, Floats]) -> _Measured:
    wrong = worse = blocks = touched = far = 0
    squared = total = largest = 0.0
    first: str | None = None
    first_far: str | None = None
    for part, offset, start, stop, source in _pieces(stored, checkpoint):
        values = stored.floats(offset + start, offset + stop)
        if stored.kind == "blocks":
            quantized = stored.blocks(offset + start, offset + stop)
            bad, over = _block_faults(stored, quantized, source, values, importance.get(part))
            worse += int(over.sum())
            assert stored.format is not None
            broken = over | in_blocks(bad, stored.format.block_size).any(axis=-1)
            blocks, touched = blocks + broken.size, touched + int(broken.sum())
            away = beyond(source, quantized, stored.format) if broken.any() else np.zeros_like(over)
            far += int(away.sum())
            if first_far is None and away.any():
                row, block = np.argwhere(away)[0]
                what = "it is further from its weights than calibration moves it"
                first_far = _block_place(stored, part, start + int(row), int(block), what)
            if first is None and over.any():
                row, block = np.argwhere(over)[0]
                first = _block_place(stored, part, start + int(row), int(block), "its error exceeds plain rounding's")
        else:
            bad = as_float(source, stored.values.dtype) != values
        if first is None and bad.any():
            place = np.argwhere(bad)[0].tolist()
            first = _first(stored, part, [start + place[0], *place[1:]])
        wrong += int(bad.sum())
        difference = (values - source).reshape(-1)
        squared += float(np.dot(difference, difference))
        total += float(np.dot(source.reshape(-1), source.reshape(-1)))
        most = float(np.abs(difference).max(initial=0))
        largest = max(largest, most if np.isfinite(most) else math.inf)
    form = stored.format
    nearest = WeightMeasure(
        initializer=stored.name,
        parts=tuple(dict.fromkeys(stored.parts)),
        shape=stored.shape,
        dtype=f"{form.bits} bit" if form is not None else stored.values.dtype,
        block_size=form.block_size if form is not None else None,
        symmetric=form.symmetric if form is not None else None,
        error=_root(squared, total),
        max_abs=largest,
        wrong=wrong,
        worse=worse if form is not None else None,
        moved=0 if form is not None else None,
        first=first,
    )
    if form is None:
        return _Measured(nearest, nearest, touched=False)
    moved = replace(nearest, wrong=0, worse=far, moved=wrong, first=first_far)
    return _Measured(nearest, moved, touched=touched > MOVED * blocks)


def _root(squared: float, total: float) -> float | None:
    """Root of a ratio; infinite where a value is not finite, None where there is nothing."""
    if not math.isfinite(squared):
        return math.inf
    return math.sqrt(squared / total) if total else None


def _pieces(stored: Stored, checkpoint: Checkpoint) -> Iterator[tuple[str, int, int, int, NDArray[np.float32]]]:
    """(part, its first row in the stack, start, stop, the source's rows [start, stop) of it), in the stack's order."""
    offset = 0
    for part, rows in zip(stored.parts, stored.rows, strict=True):
        width = int(np.prod(checkpoint.tensors[part].shape[1:], dtype=np.int64))
        # Columns of a row-major file are read one by one: of a transposed weight many rows are taken at once.
        step = max(1, PIECE // width) if not stored.reversed else rows if stored.kind == "transposed" else LONG_PIECE
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            yield part, offset, start, stop, checkpoint.rows(part, start, stop)
        offset += rows


def _block_faults(
    stored: Stored, blocks: QuantizedBlocks, source: Floats, values: Floats, importance: Floats | None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(codes that are not nearest [n, K], blocks that are worse than plain rounding's [n, G])."""
    form = stored.format
    assert form is not None
    columns = stored.columns
    weights = in_blocks(source, form.block_size)  # [n, G, S]
    scale = blocks.scales.astype(np.float32)[..., None]
    codes = unpack(blocks.codes, form.bits, form.block_size).astype(np.float32)
    zero: Any = np.float32(form.zero_point)
    if blocks.zero_points is not None:
        zero = unpack(blocks.zero_points, form.bits, codes.shape[1]).astype(np.float32)[..., None]
    wanted = np.divide(weights, scale, out=np.zeros_like(weights), where=scale != 0)
    np.clip(wanted + zero, 0, (1 << form.bits) - 1, out=wanted)
    far = ~(np.abs(wanted - codes) <= NEAREST)  # NaN is far from everything
    bad = far.reshape(len(source), -1)[:, :columns]
    plain = dequantize(PLAIN[form.quantizer](np.ascontiguousarray(source), form), form, columns)
    forms = [weights, in_blocks(values, form.block_size), in_blocks(plain, form.block_size)]
    over = _worse(*forms)
    if importance is not None and over.any():
        root = in_blocks(np.sqrt(importance)[None], form.block_size)
        over &= _worse(*(part * root for part in forms))
    return bad, over


def _worse(weights: Floats, values: Floats, plain: Floats) -> NDArray[np.bool_]:
    """Blocks [n, G] where `values` [n, G, S] are further from the weights than `plain`."""
    tiny = (weights.astype(np.float64) ** 2).sum(axis=-1) * 1e-12
    floor = _block_error(weights, plain)
    result: NDArray[np.bool_] = ~(_block_error(weights, values) <= floor * NOT_WORSE + tiny)
    return result


def _block_error(weights: NDArray[np.float32], values: NDArray[np.float32]) -> NDArray[np.float64]:
    difference = weights - values
    error: NDArray[np.float64] = np.einsum("ngs,ngs->ng", difference, difference, dtype=np.float64)
    return error


def _first(stored: Stored, part: str, place: list[int]) -> str:
    if stored.format is None:
        return f"{part}{place}"
    return _block_place(stored, part, place[0], place[1] // stored.format.block_size, f"column {place[1]}'s code")


def _block_place(stored: Stored, part: str, row: int, block: int, what: str) -> str:
    assert stored.format is not None
    size = stored.format.block_size
    return f"{part}, row {row}, block {block} (columns {block * size} to {block * size + size - 1}): {what}"
