"""The divergence of forks at the head: KL(reference || fork), summed over parts of the table; logits are never whole.

With p the reference's probabilities and d = fork's logits - reference's, row by row,

    KLD = log sum p exp(d) - sum p d = log1p(D + B) - B,    B = sum p d,  D = sum p (exp(d) - 1 - d)

D holds terms of second order and none of them is negative, so that a divergence of 1e-9 survives float32 logits; the
sums over the vocabulary are float64.

Letters: n scored tokens, H hidden, V vocab, F forks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from lfm2export.quant import rounded
from lfm2export.weights import BlockFormat

Array = NDArray[np.float32]

#: Rows of the table, and scored tokens, whose logits are in memory at once: 8 MB.
TABLE_ROWS, SCORED_ROWS = 4096, 512

#: (start, stop) -> rows of the head's matrix, float32 [stop - start, H].
Rows = Callable[[int, int], Array]


def divergences(
    hidden: Array,
    scored: NDArray[np.intp],
    formats: Sequence[BlockFormat | None],
    table: Rows,
    vocab: int,
    pool: ThreadPoolExecutor,
    done: Callable[[float], None],
) -> list[float]:
    """Mean KLD in nats over the tokens `scored` [n] of every fork, `hidden`[1:], from the reference, `hidden`[0].

    Args:
        hidden: [1 + F, T, H] after the final norm, perhaps a mapped file: no more than a few rows are copied.
        formats: of the head's matrix, per fork; None where it is as `table` gives it.
        done: called with the share of the table that is through.
    """
    count = len(scored)
    tops = [slice(start, min(start + SCORED_ROWS, count)) for start in range(0, count, SCORED_ROWS)]
    normalizer = _log_sums(hidden[0][scored], table, vocab)
    first, second = np.zeros((len(formats), count)), np.zeros((len(formats), count))

    for start in range(0, vocab, TABLE_ROWS):
        rows = table(start, min(start + TABLE_ROWS, vocab))
        others = {form: rounded(rows, form) for form in formats if form is not None}

        def add(task: tuple[int, slice], rows: Array = rows, others: dict[BlockFormat, Array] = others) -> None:
            fork, top = task
            form = formats[fork]
            reference = _logits(hidden[0, scored[top]], rows)
            d = _logits(hidden[1 + fork, scored[top]], rows if form is None else others[form]).sub_(reference)
            p = reference.sub_(normalizer[top]).exp_()
            first[fork, top] += (p * d).sum(1, dtype=torch.float64).numpy()
            second[fork, top] += p.mul_(torch.expm1(d).sub_(d)).sum(1, dtype=torch.float64).numpy()

        list(pool.map(add, [(fork, top) for fork in range(len(formats)) for top in tops]))
        done(min(1.0, (start + TABLE_ROWS) / vocab))
    return [float((np.log1p(b + d) - b).mean()) for b, d in zip(first, second, strict=True)]


def _log_sums(hidden: Array, table: Rows, vocab: int) -> torch.Tensor:
    """log sum exp of the logits of `hidden` [n, H], as [n, 1]."""
    total = torch.full((len(hidden), 1), -torch.inf, dtype=torch.float64)
    for start in range(0, vocab, TABLE_ROWS):
        rows = table(start, min(start + TABLE_ROWS, vocab))
        for top in range(0, len(hidden), SCORED_ROWS):
            part = _logits(hidden[top : top + SCORED_ROWS], rows).double().logsumexp(1, keepdim=True)
            total[top : top + SCORED_ROWS] = torch.logaddexp(total[top : top + SCORED_ROWS], part)
    return total.float()


def _logits(hidden: Array, rows: Array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(hidden)) @ torch.from_numpy(rows).mT
