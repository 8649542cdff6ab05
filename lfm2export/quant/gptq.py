"""GPTQ on MatMulNBits' own grid: codes that answer for each other's error on the inputs that the matrix really sees.

Rounding each weight by itself ignores that inputs are correlated: what one column gets wrong, others can make up for.
For a row w and its quantized q the squared error of the output over inputs x is

    (w - q) H (w - q)^T        H = mean of x^T x, [K, K], damped by a share of its mean diagonal

With H = L L^T (L lower) that is the sum over columns a of (L_aa e_a + sum_{b > a} L_ba e_b)**2, e = w - q. So, from the
last column to the first, the best code of column a is the one nearest to w_a + sum_{b > a} e_b L_ba / L_aa: the errors
already made are known, and each column takes its share of them. This is GPTQ (Frantar et al., "GPTQ: Accurate
Post-Training Quantization for Generative Pre-trained Transformers", 2022) in the form of Babai's nearest plane (Chen et
al., "The Geometry of LLM Quantization: GPTQ as Babai's Nearest Plane Algorithm", 2025): one factorization, no inverse.

Columns are taken in the order of falling H_kk ("activation order"); grids are static: each block's float16 scale and
integer zero point are chosen beforehand, by the search weighted with H's diagonal, on the matrix's own blocks, so the
order never reaches the file. Babai's plane is nearest greedily, not jointly: a row whose error is larger than that of
the weighted search, or of plain rounding, keeps the better of those.

Letters: N rows (output features), K columns (input features), S block_size, G blocks per row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lfm2export.errors import Lfm2ExportError
from lfm2export.quant.blocks import dequantize, pack, take_rows, unpack
from lfm2export.quant.rounding import quantize_round
from lfm2export.quant.search import quantize_search
from lfm2export.weights import BlockFormat, QuantizedBlocks

Array = NDArray[np.float32]

#: The share of H's mean diagonal that is added to its diagonal: what is not in the calibration text is not free.
DAMPING = 0.01

#: Columns whose errors on each other are summed one by one; those of earlier blocks come as one product.
BLOCK = 64

#: A new [K, K] float32 array, perhaps in a file.
Allocate = Callable[[tuple[int, int]], Array]


class FactorError(Lfm2ExportError):
    """H has no Cholesky factor: it is not finite, or not positive definite in spite of its damping."""


@dataclass(frozen=True)
class Factor:
    """H of one matrix's inputs, damped and factorized.

    order [K]: the source column that factor row a stands for, by rising H_kk; the last is quantized first.
    lower: float32 [K, K] = L, zeros above the diagonal. importance: float32 [K], H's damped diagonal in source order.
    """

    order: NDArray[np.int64]
    lower: Array
    importance: Array


def factorize(hessian: Array, damping: float = DAMPING, allocate: Allocate | None = None) -> Factor:
    """L of `hessian` float32 [K, K], symmetric: mean of x^T x over inputs x [1, K]. Left as it is.

    Columns that no input ever reached get the damping alone: they are rounded, and make up for nothing.

    allocate: gives the memory of L, of which there is no second copy; by default the heap.

    Raises:
        FactorError: there is no factor.
    """
    columns = len(hessian)
    diagonal = np.diagonal(hessian).copy()
    mean = float(diagonal.mean(dtype=np.float64))
    if not np.isfinite(mean) or mean <= 0:
        raise FactorError(f"the mean square of the inputs is {mean}, expected a positive number")
    importance = diagonal + np.float32(damping * mean)
    order = np.argsort(diagonal, kind="stable")
    lower = np.empty((columns, columns), np.float32) if allocate is None else allocate((columns, columns))
    for row, source in enumerate(order):
        np.take(hessian[source], order, out=lower[row], mode="clip")  # "raise" would buffer
    np.fill_diagonal(lower, importance[order])
    view = torch.from_numpy(lower).mT  # symmetric, so its transpose is itself: LAPACK's order of memory, no copy
    info = torch.empty((), dtype=torch.int32)
    torch.linalg.cholesky_ex(view, upper=True, out=(view, info))  # view = U = L^T, so the array is L
    if info.item() or not np.isfinite(np.diagonal(lower)).all():
        raise FactorError(f"pivot {info.item()} of {columns} is not positive at a damping of {damping:g}")
    return Factor(order, lower, importance)


def quantize_gptq(weight: Array, format: BlockFormat, factor: Factor) -> QuantizedBlocks:
    """`weight` float32 [N, K] in blocks of `format`, by GPTQ; no row's :func:`objective` is above that of the weighted
    search, nor above plain rounding's.

    Rows are independent: any split of N gives the same bytes up to the order of float32 sums in products of other
    shapes; the callers' splits are fixed. PyTorch's own threads are the caller's to set.
    """
    columns = weight.shape[1]
    best = quantize_search(weight, format, factor.importance)
    planes, error = _nearest_planes(weight, format, factor, best)
    for other in (best, quantize_round(weight, format)):
        other_error = objective(weight - dequantize(other, format, columns), factor)
        swap = other_error < error
        planes, error = take_rows(planes, other, swap), np.where(swap, other_error, error)
    return planes


def objective(error: Array, factor: Factor) -> Array:
    """e H e^T of each row of `error` float32 [N, K], with the damped H: [N]."""
    columns = len(factor.order)
    ordered = torch.from_numpy(np.ascontiguousarray(error[:, factor.order]))
    lower = torch.from_numpy(factor.lower)
    total = torch.zeros(len(error))
    step = 16 * BLOCK
    for start in range(0, columns, step):
        part = ordered[:, start:] @ lower[start:, start : start + step]
        total += (part * part).sum(dim=1)
    result: Array = total.numpy()
    return result


def _nearest_planes(
    weight: Array, format: BlockFormat, factor: Factor, grids: QuantizedBlocks
) -> tuple[QuantizedBlocks, Array]:
    """Codes on the blocks of `grids`, and each row's objective [N]."""
    rows, columns = weight.shape
    blocks, levels = format.blocks(columns), (1 << format.bits) - 1
    scale = torch.from_numpy(grids.scales.astype(np.float32).T.copy())  # [G, N]
    zero = torch.from_numpy(_zero_points(grids, format).T.copy())
    inverse = torch.where(scale != 0, 1 / scale, 0)
    group = (factor.order // format.block_size).tolist()
    lower = torch.from_numpy(factor.lower)
    diagonal = lower.diagonal().tolist()
    target = torch.empty(columns, rows)
    target.copy_(torch.from_numpy(weight.T[factor.order]))
    error = torch.empty(columns, rows)  # e, of the columns done
    codes = torch.empty(columns, rows, dtype=torch.uint8)
    total = torch.zeros(rows)
    for stop in range(columns, 0, -BLOCK):
        start = max(0, stop - BLOCK)
        carried = lower[stop:, start:stop].mT @ error[stop:]  # [B, N]
        for a in range(stop - 1, start - 1, -1):
            owed = carried[a - start]
            if a + 1 < stop:
                owed = owed + lower[a + 1 : stop, a] @ error[a + 1 : stop]
            g = group[a]
            wanted = target[a] + owed / diagonal[a]
            code = (wanted * inverse[g]).round_()
            code = torch.minimum(torch.maximum(code, -zero[g]), levels - zero[g])
            value = code * scale[g]
            torch.sub(target[a], value, out=error[a])
            total += ((wanted - value) * diagonal[a]) ** 2
            codes[a] = (code + zero[g]).to(torch.uint8)
    found = np.empty((rows, blocks * format.block_size), np.uint8)
    found[:, factor.order] = codes.numpy().T
    found[:, columns:] = np.repeat(_zero_points(grids, format)[:, -1:], found.shape[1] - columns, axis=1)
    packed = pack(found.reshape(rows, blocks, -1), format.bits)
    result: Any = total.numpy()
    return QuantizedBlocks(packed, grids.scales, grids.zero_points, grids.saturated, grids.largest), result


def _zero_points(blocks: QuantizedBlocks, format: BlockFormat) -> Array:
    """[N, G]."""
    if blocks.zero_points is None:
        return np.full(blocks.scales.shape, format.zero_point, np.float32)
    return unpack(blocks.zero_points, format.bits, blocks.scales.shape[1]).astype(np.float32)
