"""The formats that a matrix may have, and the part of their divergence that follows from the weights alone.

A small change of one matrix moves the logits in proportion, and their divergence grows with its square. So of one
matrix the formats' divergences stand to each other as its squared errors do, each column's weighed by the mean square
of what it multiplies. On the shipped model, 33 matrices by 6 formats measured on 1,800 tokens: divergences extrapolated
so from 4-bit asymmetric blocks of 32 correlate with those measured by .9997 (logarithms); of their ratio to those, the
root mean square of the deviation is 5-9 % for other 4-bit formats and 8-11 % for 8 bits, where it changes nothing.

Letters: N rows (output features), K columns (input features).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lfm2export.matrices import Matrix
from lfm2export.quant import blocks_of, dequantize
from lfm2export.quant.blocks import row_bytes
from lfm2export.weights import BlockFormat, Quantizer, WeightSource

Array = NDArray[np.float32]
Floats = NDArray[np.float64]

#: Rows of a source tensor that stand for all of them where errors are compared, and how many lie together.
SAMPLED_ROWS, STRETCH = 1024, 64


def candidates(quantizer: Quantizer) -> tuple[BlockFormat, ...]:
    """What a matrix may be stored in: with 8 bits a zero point brings nothing."""
    four = [BlockFormat(4, size, symmetric, quantizer) for size in (128, 64, 32) for symmetric in (True, False)]
    return (*four, *(BlockFormat(8, size, True, quantizer) for size in (128, 64, 32)))


def measured_format(matrix: Matrix, bits: Literal[4, 8], quantizer: Quantizer) -> BlockFormat:
    """The format whose divergence is measured, for all formats of as many bits.

    Of a layer's matrix, 4 bits stand for 8 as well; the table's two widths are both measured.
    """
    return BlockFormat(4 if matrix.layer is not None else bits, 32, bits == 8 and matrix.layer is None, quantizer)


def stored_bytes(matrix: Matrix, format: BlockFormat) -> int:
    """Bytes of codes, scales and zero points."""
    return matrix.rows * row_bytes(format, matrix.columns)


def as_stored(source: WeightSource, part: str, start: int, stop: int, format: BlockFormat) -> Array:
    """Rows [start, stop) of a source tensor as a file written from `source` holds them in `format`."""
    blocks = blocks_of(source, part, start, stop, format)
    return np.ascontiguousarray(dequantize(blocks, format, source.tensors[part].shape[1]))


def squared_errors(
    source: WeightSource,
    matrix: Matrix,
    formats: tuple[BlockFormat, ...],
    moments: Mapping[str, Floats],
    pool: Executor,
) -> dict[BlockFormat, float]:
    """sum over sampled rows and columns of moment * (w - w in the format)**2, per format.

    source: what files are written from. moments: sums of squares of what the columns multiply, [K], per source tensor;
    a table that is only looked up has none, and its columns count alike.
    """

    def error(task: tuple[str, int, int]) -> list[float]:
        part, start, stop = task
        rows = source.rows(part, start, stop)
        weigh = moments.get(part, np.ones(matrix.columns))
        return [float(((rows - as_stored(source, *task, form)) ** 2 @ weigh).sum()) for form in formats]

    tasks = [(part, *cut) for part in matrix.parts for cut in _stretches(source.tensors[part].shape[0])]
    totals = [math.fsum(found) for found in zip(*pool.map(error, tasks), strict=True)]
    return dict(zip(formats, totals, strict=True))


def _stretches(rows: int) -> list[tuple[int, int]]:
    """[start, stop) of at most SAMPLED_ROWS rows in all, spread evenly."""
    count = SAMPLED_ROWS // STRETCH
    if rows <= SAMPLED_ROWS:
        return [(start, min(start + STRETCH, rows)) for start in range(0, rows, STRETCH)]
    return [(start, start + STRETCH) for start in np.linspace(0, rows - STRETCH, count).astype(int).tolist()]
