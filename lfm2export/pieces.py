"""Recipes cut into pieces: a range of rows of one source tensor, and every byte of the file that follows from it.

A piece is read once, as float32, and everything that depends on it is computed and written before the next: codes,
scales and zero points of a quantized matrix together, a transposed matrix as runs of its columns (one write per column
costs less than reading a row-major file by columns, which reads all of it for every piece). Memory is bounded by
pieces in flight, not by tensors. Cuts depend on shapes alone, so bytes do not depend on how many threads there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfm2export.errors import GraphError, TensorError
from lfm2export.quant import blocks_of
from lfm2export.quant.blocks import code_bytes, signed, zero_point_bytes
from lfm2export.quant.grid import HALF_MAX
from lfm2export.weights import BlockFormat, Component, Recipe, WeightSource

ITEM_BYTES = {"FLOAT": 4, "FLOAT16": 2, "UINT8": 1, "INT8": 1}

#: Float32 bytes of source in a piece.
PIECE_BYTES = 4 << 20


@dataclass(frozen=True)
class Slot:
    """Where one initializer lies: `nbytes` bytes at `offset` of data file number `file`."""

    name: str
    recipe: Recipe
    file: int
    offset: int

    @property
    def nbytes(self) -> int:
        return stored_bytes(self.recipe)


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of source tensor `part`: from row `first` on of the stack [rows, ...] that `slots` store."""

    slots: tuple[Slot, ...]
    part: str
    start: int
    stop: int
    first: int
    rows: int

    @property
    def nbytes(self) -> int:
        """Bytes that follow from this piece: what it writes, and with the last rows the padding."""
        rows, last = self.stop - self.start, self.first + self.stop - self.start == self.rows
        padding = [slot.recipe.padding for slot in self.slots]
        sizes = [slot.nbytes // (self.rows + more) for slot, more in zip(self.slots, padding, strict=True)]
        return sum(size * (rows + last * more) for size, more in zip(sizes, padding, strict=True))

    def weights(self, source: WeightSource) -> int:
        """Numbers that it is made of."""
        return (self.stop - self.start) * math.prod(source.tensors[self.part].shape[1:])


@dataclass(frozen=True)
class Overflow:
    """`count` values (of a quantized matrix: blocks) of initializer `tensor` did not fit float16 and were limited.

    largest: the greatest magnitude met.
    """

    tensor: str
    count: int
    largest: float


#: Writes an array's bytes at an offset, in bytes, inside a slot.
Write = Callable[[Slot, int, NDArray[Any]], None]


def stored_bytes(recipe: Recipe) -> int:
    return math.prod(recipe.shape) * ITEM_BYTES[recipe.dtype]


def cut(slots: Iterable[Slot], source: WeightSource, piece_bytes: int = PIECE_BYTES) -> Iterator[Piece]:
    """The pieces of all slots, in the slots' order; components of one quantized matrix share theirs.

    Raises:
        GraphError: a recipe names a tensor that the source lacks, or its shape does not follow from its parts.
    """
    groups: dict[object, list[Slot]] = {}
    for slot in slots:
        recipe = slot.recipe
        key = (recipe.parts, recipe.block) if recipe.block is not None else slot.name
        groups.setdefault(key, []).append(slot)
    for group in groups.values():
        shapes = [_source_shape(group[0], part, source) for part in group[0].recipe.parts]
        rows = sum(shape[0] for shape in shapes)
        for slot in group:
            _check(slot, shapes, rows)
        first = 0
        for part, shape in zip(group[0].recipe.parts, shapes, strict=True):
            for start, stop in row_ranges(shape, piece_bytes):
                yield Piece(tuple(group), part, start, stop, first + start, rows)
            first += shape[0]


def row_ranges(shape: tuple[int, ...], piece_bytes: int = PIECE_BYTES) -> Iterator[tuple[int, int]]:
    """[start, stop) of the pieces of a source tensor of this shape."""
    step = max(1, piece_bytes // (4 * math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


def evaluate(piece: Piece, source: WeightSource, write: Write) -> list[Overflow]:
    """Read, compute and write one piece; what did not fit float16.

    Raises:
        TensorError, SourceError: as the source raises them, and for weights that are not finite.
    """
    block = piece.slots[0].recipe.block
    if block is not None:
        return _quantized(piece, block, source, write)
    values = source.rows(piece.part, piece.start, piece.stop)
    return _dense(piece, piece.slots[0], values, write)


def _dense(piece: Piece, slot: Slot, values: NDArray[np.float32], write: Write) -> list[Overflow]:
    stored, overflows = _stored(slot, values)
    _write_rows(piece, slot, stored, write)
    return overflows


def _write_rows(piece: Piece, slot: Slot, stored: NDArray[Any], write: Write) -> None:
    """The piece's rows at their place: one run, or one for each column of a transposed initializer.

    Nothing writes padding: a new file is zeros.
    """
    if not slot.recipe.transpose:
        write(slot, piece.first * stored[:1].nbytes, stored)
        return
    for column, run in enumerate(np.ascontiguousarray(stored.T).reshape(-1, len(stored))):
        write(slot, (column * (piece.rows + slot.recipe.padding) + piece.first) * stored.itemsize, run)


def _stored(slot: Slot, values: NDArray[np.float32]) -> tuple[NDArray[Any], list[Overflow]]:
    if slot.recipe.dtype == "FLOAT":
        return values, []
    largest = max(float(values.max()), -float(values.min()))
    if not math.isfinite(largest):
        raise TensorError(f"{slot.name} holds NaN or Inf, expected finite weights; use an undamaged checkpoint")
    if largest < HALF_MAX:
        return values.astype(np.float16), []
    # Values below 65520 round to 65504, the largest float16; the others would become infinite.
    beyond = int((np.abs(values) >= 65520).sum())
    stored = np.clip(values, -HALF_MAX, HALF_MAX).astype(np.float16)
    return stored, [Overflow(slot.name, beyond, largest)] if beyond else []


def _quantized(piece: Piece, block: BlockFormat, source: WeightSource, write: Write) -> list[Overflow]:
    quantized = blocks_of(source, piece.part, piece.start, piece.stop, block)
    overflows = []
    components: dict[Component, NDArray[Any] | None] = {
        "codes": quantized.codes,
        "scales": quantized.scales,
        "zero_points": quantized.zero_points,
    }
    for slot in piece.slots:
        stored = components[slot.recipe.component]
        assert stored is not None  # _check refused zero points of a symmetric format
        _write_rows(piece, slot, signed(stored) if slot.recipe.dtype == "INT8" else stored, write)
        if slot.recipe.component == "scales" and quantized.saturated:
            overflows.append(Overflow(slot.name, quantized.saturated, quantized.largest))
    return overflows


def _source_shape(slot: Slot, part: str, source: WeightSource) -> tuple[int, ...]:
    if part not in source.tensors:
        raise GraphError(f"initializer {slot.name} is made of {part}, which the checkpoint does not have")
    shape = tuple(source.tensors[part].shape)
    if not shape or 0 in shape:
        raise GraphError(f"initializer {slot.name} is made of {part} of shape {list(shape)}, expected rows to stack")
    return shape


def _check(slot: Slot, shapes: list[tuple[int, ...]], rows: int) -> None:
    """That the stored shape and type follow from the stacked parts."""
    recipe = slot.recipe
    got = (recipe.dtype, tuple(recipe.shape))
    if any(shape[1:] != shapes[0][1:] for shape in shapes):
        raise GraphError(f"initializer {slot.name} stacks {shapes}, expected parts that differ in rows only")
    if recipe.block is not None:
        if len(shapes[0]) != 2 or (recipe.transpose and recipe.dtype != "INT8"):
            raise GraphError(f"initializer {slot.name} quantizes {shapes[0]}, expected matrices as they are stored")
        expected = _components(recipe.block, rows, shapes[0][1], recipe).get(recipe.component)
        if got != expected:
            raise GraphError(f"initializer {slot.name} stores {recipe.component} as {got}, expected {expected}")
        return
    count = rows * math.prod(shapes[0][1:])
    flat = not recipe.transpose or got[1] == (*shapes[0][:0:-1], rows)
    if recipe.component != "values" or recipe.dtype == "UINT8" or math.prod(recipe.shape) != count or not flat:
        raise GraphError(
            f"initializer {slot.name} stores {recipe.component} as {got}, expected {count} float values of "
            f"{rows} stacked rows of {list(shapes[0][1:])}{', transposed' if recipe.transpose else ''}"
        )


def _components(
    block: BlockFormat, rows: int, columns: int, recipe: Recipe
) -> dict[Component, tuple[str, tuple[int, ...]]]:
    """Stored type and shape of each component of a quantized matrix [rows, columns] in the layout of `recipe`."""
    blocks = block.blocks(columns)
    stored: dict[Component, tuple[str, tuple[int, ...]]] = {
        "codes": ("UINT8", (rows, blocks, code_bytes(block))),
        "scales": ("FLOAT16", (rows, blocks)),
    }
    if not block.symmetric:
        stored["zero_points"] = ("UINT8", (rows, zero_point_bytes(block, columns)))
    elif block == BlockFormat(8, columns, True, block.quantizer):
        padded = rows + recipe.padding
        if recipe.dtype == "INT8":
            stored["codes"] = ("INT8", (columns, padded) if recipe.transpose else (padded, columns))
        if len(recipe.shape) == 1:
            stored["scales"] = ("FLOAT16", (padded,))
    return stored
