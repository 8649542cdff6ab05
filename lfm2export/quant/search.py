"""Joint search of scale and integer zero point per block for least squared error: the quantizer "search".

For fixed codes d the error sum h * (w - s * d)**2 is a parabola in s, least at s* = <hw, d> / <hd, d>; among float16
numbers the nearest to s* is best, and it takes s * (2 <hw, d> - s <hd, d>) off the error of all zeros. So a candidate
grid costs one rounding and two dot products, and is judged with its scale already refitted and rounded to float16.
Encoding once more on the winner's scale can only lower the error.

Candidates: plain rounding, and ranges scaled by the factors below, each with the zero point that centres it on the
data, z = round(levels / 2 - centre / s). The factors were picked greedily from 29 in steps of .02 (times zero points
one to either side) for least error over Gaussian, Student-t(5) and Laplace blocks of 32 and 128; against the whole
pool they lose .1-.3 % of error. A final comparison with plain rounding, block by block, makes the promise literal:
never worse.

With 8 bits the error is small against what a float32 dot product resolves, and there is nothing to win: one refit.
"""

from __future__ import annotations

import numpy as np

from lfm2export.quant.grid import Array, Chunk, Grid, block_dot, encode, quantize_chunks, squared_error, to_half
from lfm2export.quant.rounding import extreme, plain_grid
from lfm2export.weights import BlockFormat, QuantizedBlocks

#: Multiples of the plain scale. A negative one puts the extreme at the end with one level less.
SYMMETRIC_FACTORS = (0.82, 0.86, 0.90, 0.94, 0.98, 1.02, 1.10, -1.18)
ASYMMETRIC_FACTORS = (0.88, 0.92, 0.96, 0.98, 1.00, 1.02, 1.06, 1.14)


def candidate(chunk: Chunk, factor: float) -> Grid:
    """The grid whose range is `factor` times that of plain rounding, centred on the data, [n]."""
    middle = chunk.format.zero_point
    if chunk.format.symmetric:
        return Grid(extreme(chunk) * np.float32(factor / -middle), np.full_like(chunk.high, middle))
    scale = (chunk.high - chunk.low) * np.float32(factor / chunk.levels)
    centre = (chunk.high + chunk.low) * np.float32(0.5)
    offset = np.divide(centre, scale, out=np.zeros_like(scale), where=scale > 0)
    return Grid(scale, np.clip(np.rint(chunk.levels / 2 - offset), 0, chunk.levels).astype(np.float32))


def refit(chunk: Chunk, grid: Grid, weighted: Array, codes: Array) -> Array:
    """Set the grid's scale to the best float16 one for `codes`; the error that it takes off, [n].

    weighted [S, n]: importance * w. Codes without a nonzero keep their scale and take nothing off.
    """
    weighted_codes = codes
    if chunk.importance is not None:
        weighted_codes = np.multiply(codes, chunk.importance, out=chunk.scratch)
    numerator, denominator = block_dot(weighted, codes), block_dot(weighted_codes, codes)
    best = np.divide(numerator, denominator, out=grid.scale.copy(), where=denominator > 0)
    grid.scale = to_half(best)
    gain: Array = grid.scale * (2 * numerator - grid.scale * denominator)
    return gain


def choose_searched(chunk: Chunk, codes: Array) -> Grid:
    """The best grid of all candidates for each block; its codes are left in `codes` [S, n]."""
    plain = plain_grid(chunk)
    plain_error = squared_error(chunk, plain, encode(chunk.columns, plain, chunk.levels, codes))
    weighted = chunk.columns if chunk.importance is None else chunk.columns * chunk.importance
    best = Grid(plain.scale.copy(), plain.zero_point.copy())
    best_gain = refit(chunk, best, weighted, codes)
    factors = SYMMETRIC_FACTORS if chunk.format.symmetric else ASYMMETRIC_FACTORS
    for factor in factors if chunk.format.bits == 4 else ():
        grid = candidate(chunk, factor)
        encode(chunk.columns, grid, chunk.levels, codes)
        gain = refit(chunk, grid, weighted, codes)
        better = gain > best_gain
        best.replace(better, grid)
        np.copyto(best_gain, gain, where=better)
    error = squared_error(chunk, best, encode(chunk.columns, best, chunk.levels, codes))
    worse = np.flatnonzero(error > plain_error)
    if worse.size:
        kept = Grid(plain.scale[worse], plain.zero_point[worse])
        best.scale[worse], best.zero_point[worse] = kept.scale, kept.zero_point
        columns = chunk.columns[:, worse]
        codes[:, worse] = encode(columns, kept, chunk.levels, np.empty_like(columns))
    return best


def quantize_search(weight: Array, format: BlockFormat, importance: Array | None = None) -> QuantizedBlocks:
    """`weight` [N, K] on the grids of least squared error, each column's error weighed by `importance` [K]."""
    return quantize_chunks(weight, format, choose_searched, importance)
