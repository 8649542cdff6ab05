"""Rows that answer for each other: GPTQ on both sides of a matrix.

GPTQ takes every row of a matrix by itself: the squared error of each output counts the same, whatever the model makes
of it. But outputs are correlated in what they do, and where an error of one row can be made up for by others it need
not show. With g [N] the gradient of what the model says by the matrix's outputs, x [K] its inputs, and the two taken
for independent, an error E = W - Q costs to second order

    trace(F E H E^T)        F = mean of g g^T [N, N]        H = mean of x^T x [K, K]

With F = L L^T (L lower) that is the sum over rows a of h(L_aa e_a + sum_{b > a} L_ba e_b), h(e) = e H e^T. So, from the
last row to the first, row a is best quantized as w_a + sum_{b > a} e_b L_ba / L_aa: what `quant.gptq` does with columns
is done with rows, and each row's columns are GPTQ's as ever. F of a divergence is its Fisher information, the
gradients those of sampled tokens; both sides together are Tseng et al., "Model-Preserving Adaptive Rounding" (YAQA),
2025, in the form of Babai's nearest plane. Rows are taken in the order of falling F_aa, :data:`ROWS` at a time, and
those taken at one time do not answer for each other.

Letters: N rows (output features), K columns (input features).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lfm2export.quant.blocks import dequantize, join_rows, order_rows
from lfm2export.quant.gptq import Factor
from lfm2export.weights import BlockFormat, QuantizedBlocks

Array = NDArray[np.float32]

#: The share of F's mean diagonal that is added to its diagonal.
DAMPING = 0.1

#: Rows that are quantized at once.
ROWS = 32


def quantize_coupled(
    weight: Array, format: BlockFormat, outputs: Factor, one_sided: Callable[[Array], QuantizedBlocks]
) -> QuantizedBlocks:
    """`weight` float32 [N, K] in blocks of `format`, its rows answering for each other.

    outputs: F, damped and factorized by `gptq.factorize`. one_sided: quantizes rows [n, K], each by itself.
    """
    rows, columns = weight.shape
    ordered = weight[outputs.order]
    diagonal = np.diagonal(outputs.lower)
    error = np.empty_like(ordered)
    pieces: list[QuantizedBlocks] = []
    for stop in range(rows, 0, -ROWS):
        start = max(0, stop - ROWS)
        owed = (outputs.lower[stop:, start:stop] / diagonal[start:stop]).T @ error[stop:]
        found = one_sided((ordered[start:stop] + owed).astype(np.float32))
        error[start:stop] = ordered[start:stop] - dequantize(found, format, columns)
        pieces.insert(0, found)
    return order_rows(join_rows(pieces), np.argsort(outputs.order))


def cost(error: Array, outputs: Array, inputs: Array) -> float:
    """trace(F E H E^T) of `error` float32 [N, K], with F [N, N] and, in place of H, its `inputs` [T, K]: the sum over
    them.
    """
    products = inputs @ error.T  # [T, N]
    return float(np.einsum("tn,tn->", products @ outputs, products, dtype=np.float64))
