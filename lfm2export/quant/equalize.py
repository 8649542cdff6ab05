"""Scales of channels by powers of two, from the weights alone, so that a matrix's columns are about equally large.

Values along a row share a scale, in blocks or in a whole row, so a column a hundred times as large as its neighbours
takes their precision. What multiplies the column's input can take that factor over (`quant.folding`): then it is
nothing but how the model happens to be written down, and powers of two move it without any rounding. A row's own size
is no matter: its scale follows it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Exponents = NDArray[np.int8]
Norms = NDArray[np.float64]

#: No channel is scaled by more than 2**MOST: further out it hardly counts, or nothing else does.
MOST = 12

#: Rows smaller than that say nothing, and their inverse may leave float32.
TINY = 1e-30


def exponents(columns: Norms, givers: Norms) -> Exponents:
    """Sizes of columns [n] and of what multiplies each one's input [n] -> e [n]: columns times 2**e are about their
    median, givers divided by 2**e keep the product.

    Whole numbers nearest to log2(median / column), so columns within sqrt(2) of the median stay; found without a
    logarithm, so that they are the same everywhere. No giver grows beyond twice the largest one: float16 activations
    stay in the range that they have, and a token's 8-bit activations keep their scale. A channel without a finite size
    above zero stays.
    """
    found = np.zeros(len(columns), np.int8)
    alive = np.isfinite(columns) & (columns > 0) & np.isfinite(givers) & (givers > 0)
    if not alive.any():
        return found
    mantissa, exponent = np.frexp(np.median(columns[alive]) / columns[alive])  # mantissa in [1/2, 1)
    room = np.frexp(givers[alive].max() / givers[alive])[1]
    found[alive] = np.clip(exponent - (mantissa < 0.5**0.5), np.maximum(-room, -MOST), MOST)
    return found


def row_norms(rows: Array) -> Norms:
    """[n, ...] -> [n]."""
    flat = rows.reshape(len(rows), -1)
    norms: Norms = np.sqrt(np.einsum("nk,nk->n", flat, flat, dtype=np.float64))
    return norms


def column_squares(rows: Array) -> Norms:
    """[n, K] -> [K]: sums of squares of columns, every row being as large as the others: scaled rows change nothing."""
    norms = row_norms(rows)
    inverse = np.divide(1, norms, out=np.zeros_like(norms), where=norms > TINY).astype(np.float32)
    squares: Norms = np.square(rows * inverse[:, None], dtype=np.float64).sum(axis=0)
    return squares
