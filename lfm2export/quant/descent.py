"""What GPTQ leaves: every code reconsidered with all others in place, and the scales of a row refitted together.

GPTQ decides column after column and never looks back. The same objective, (w - q) H (w - q)^T for a row w and its
quantized q, falls further in rounds of two exact steps, each with the rest held fixed:

    scales   with codes d and blocks g, q = sum_g s_g d_g, the objective is a parabola in the scales s [G] of the row:
             s A s^T - 2 s b^T + const,  A_gh = d_g H d_h^T,  b_g = d_g H w^T,  least at s = b A^-1.
    codes    one column after the other, the nearest code to q_k + ((w - q) H)_k / H_kk, which is the best value of
             that column given all others (coordinate descent, as in "QuantEase", Behdin et al., 2023).

Scales are rounded to float16 before they are judged, and a row takes new ones only if they lower its parabola; zero
points stay. Neither step can raise a row's objective but for float32's rounding, and a row whose objective rose in the
end is given back as it came.

Letters: N rows (output features), K columns (input features), S block_size, G blocks per row.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from lfm2export.quant.blocks import pack, unpack
from lfm2export.quant.grid import HALF_MAX
from lfm2export.weights import BlockFormat, QuantizedBlocks

Array = NDArray[np.float32]

#: (columns up to, rounds): on matrices of a trained model the first round takes 5 % off GPTQ's objective, three take 6
#: to 7 %. A round costs some 14 K**2 operations a row: 12 s of one core for 195 rows of 10,752 columns.
ROUNDS = ((2048, 2), (4608, 1))

#: Columns that are reconsidered between two products with all of H.
BLOCK = 64

#: Float32 numbers of A that are in memory at once: at 336 blocks a row, the A of 37 rows.
PARABOLAS = 1 << 22

#: Added to A's diagonal as a share of its mean, so that a block of zero codes has a scale.
RIDGE = 1e-6


def rounds_for(columns: int) -> int:
    """How many rounds a matrix of that many columns is worth; 0 for the widest."""
    return next((rounds for limit, rounds in ROUNDS if columns <= limit), 0)


def descend(
    weight: Array, blocks: QuantizedBlocks, format: BlockFormat, hessian: Array, damping: float, rounds: int = 2
) -> QuantizedBlocks:
    """`blocks` of `weight` float32 [N, K], no row of which has a larger objective afterwards.

    hessian: float32 [K, K], symmetric, mean of x^T x over inputs x; `damping` times its mean diagonal is added to its
    diagonal, as in `quant.gptq`. Rows are independent. PyTorch's own threads are the caller's to set.
    """
    rows = len(weight)
    size, count = format.block_size, blocks.scales.shape[1]
    moments = torch.from_numpy(hessian)
    shift = damping * float(np.diagonal(hessian).mean(dtype=np.float64))
    w = torch.from_numpy(np.ascontiguousarray(weight.T))  # [K, N]
    zero = torch.from_numpy(_zero_points(blocks, format).T.copy())  # [G, N]
    codes = torch.zeros(count * size, rows)
    codes.copy_(torch.from_numpy(unpack(blocks.codes, format.bits, size).reshape(rows, -1).T.astype(np.float32)))
    codes = (codes.view(count, size, rows) - zero[:, None]).view(-1, rows)
    scales = torch.from_numpy(blocks.scales.astype(np.float32).T.copy())  # [G, N]
    start = _objective(_error(w, codes, scales, size), moments, shift)
    by_weight = moments @ w + shift * w
    for _ in range(rounds):
        step = max(1, PARABOLAS // count**2)
        cuts = [slice(first, first + step) for first in range(0, rows, step)]
        refitted = [_refitted(codes[:, c], scales[:, c], by_weight[:, c], moments, shift, size) for c in cuts]
        scales = torch.cat(refitted, dim=1)
        codes, objective = _reconsidered(w, codes, scales, zero, format, moments, shift)
    worse = objective > start
    found = (codes.view(count, size, rows) + zero[:, None]).to(torch.uint8).permute(2, 0, 1).numpy()
    packed = pack(np.ascontiguousarray(found), format.bits)
    halves = scales.T.numpy().astype(np.float16)
    packed[worse.numpy()], halves[worse.numpy()] = blocks.codes[worse.numpy()], blocks.scales[worse.numpy()]
    return QuantizedBlocks(packed, halves, blocks.zero_points, blocks.saturated, blocks.largest)


def _refitted(
    codes: torch.Tensor, scales: torch.Tensor, by_weight: torch.Tensor, moments: torch.Tensor, shift: float, size: int
) -> torch.Tensor:
    """The scales [G, N] of least objective for `codes` [G * S, N], as float16 numbers, where they lower it."""
    count, rows = scales.shape
    columns = len(moments)
    A = torch.empty(rows, count, count)
    b = torch.empty(rows, count)
    padded = torch.zeros(count * size, rows)
    for g in range(count):
        mine = slice(g * size, min((g + 1) * size, columns))
        padded[:columns] = moments[:, mine] @ codes[mine]
        padded[mine] += shift * codes[mine]
        A[:, g] = (padded * codes).view(count, size, rows).sum(dim=1).T
        b[:, g] = (by_weight[mine] * codes[mine]).sum(dim=0)
    diagonal = A.diagonal(dim1=1, dim2=2)
    used = diagonal > 0
    ridge = RIDGE * diagonal.mean(dim=1, keepdim=True) + torch.finfo(torch.float32).tiny
    solved, _ = torch.linalg.solve_ex(A + torch.diag_embed(ridge.expand_as(diagonal)), b[..., None])
    wanted = solved[..., 0].clamp(-HALF_MAX, HALF_MAX).to(torch.float16).float()
    old = scales.T
    wanted = torch.where(used & wanted.isfinite(), wanted, old)

    def parabola(s: torch.Tensor) -> torch.Tensor:
        return ((A @ s[..., None])[..., 0] * s - 2 * b * s).sum(dim=1)

    better = parabola(wanted) < parabola(old)
    return torch.where(better[:, None], wanted, old).T.contiguous()


def _reconsidered(
    w: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    zero: torch.Tensor,
    format: BlockFormat,
    moments: torch.Tensor,
    shift: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One pass over the columns: the codes [G * S, N], and each row's objective [N]."""
    columns, levels, size = len(w), (1 << format.bits) - 1, format.block_size
    inverse = torch.where(scales != 0, 1 / scales, 0)
    error = _error(w, codes, scales, size)
    by_error = moments @ error + shift * error  # H e, of which row k is (e H)_k
    diagonal = (moments.diagonal() + shift).tolist()
    codes = codes.clone()
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        among = moments[start:stop, start:stop]
        owed, moved = by_error[start:stop].clone(), torch.zeros(stop - start, w.shape[1])
        for k in range(start, stop):
            g, here = k // size, k - start
            best = w[k] - error[k] + owed[here] / diagonal[k]
            code = (best * inverse[g]).round_()
            code = torch.minimum(torch.maximum(code, -zero[g]), levels - zero[g])
            after = w[k] - code * scales[g]
            moved[here] = after - error[k]
            owed[here + 1 :] += among[here + 1 :, here, None] * moved[here]
            codes[k], error[k] = code, after
        by_error += moments[:, start:stop] @ moved
        by_error[start:stop] += shift * moved
    return codes, (by_error * error).sum(dim=0)


def _error(w: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, size: int) -> torch.Tensor:
    """w - q, [K, N]."""
    values = (codes.view(len(scales), size, -1) * scales[:, None]).view(len(codes), -1)
    return w - values[: len(w)]


def _objective(error: torch.Tensor, moments: torch.Tensor, shift: float) -> torch.Tensor:
    return ((moments @ error + shift * error) * error).sum(dim=0)


def _zero_points(blocks: QuantizedBlocks, format: BlockFormat) -> Array:
    """[N, G]."""
    if blocks.zero_points is None:
        return np.full(blocks.scales.shape, format.zero_point, np.float32)
    return unpack(blocks.zero_points, format.bits, blocks.scales.shape[1]).astype(np.float32)
