"""Block scales tuned end to end: codes stay, and all scales together are moved towards the reference's next-token
distribution.

GPTQ makes each matrix answer for its own output. What the model says in the end depends on how the errors of all
matrices meet, and that has a gradient. For the rows of calibration text, with p the reference's distribution and q the
quantized model's,

    loss = mean KL(p || q)        d loss / d logits = (q - p) / rows

and for a matrix y = W x with W = s * d (block scale times signed code), d loss / d s is the sum over the block of
d * (d loss / d W). Scales are few (one for 16 to 128 weights) and the signal is rich (a distribution over the whole
vocabulary for every token), so that they need few tokens. Each sequence counts by what becomes of its own divergence:
else one that the model finds strange would outweigh all others. Held-out sequences decide whether the result is kept.
The idea is that of EfficientQAT's second phase (Chen et al., 2024) and of MLX's DWQ, on MatMulNBits' grid: scales end
as float16, zero points stay integers.

A step's sequences are tasks of one thread each, and their gradients are added in order, so results do not depend on how
many threads there are. Letters: T tokens of a sequence, H hidden, V vocab, N rows, K columns, G blocks a row, S block
size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lfm2export.calibrate.activations import Sequences
from lfm2export.calibrate.matrix import MOVED, Choice, keep_within
from lfm2export.calibrate.store import Store
from lfm2export.calibrate.student import HEAD_ROWS, Student
from lfm2export.checkpoint import EMBEDDING, HEAD
from lfm2export.progress import Progress, silent
from lfm2export.reference.run import Run
from lfm2export.reference.stream import StreamReference
from lfm2export.reference.weights import SourceWeights

Array = NDArray[np.float32]

#: Sequences of a step, and how often each one is seen: on the shipped model they take the KLD on held-out calibration
#: text to 85 % of what it was before, where steps of 4 and two times take it to 93 %.
BATCH, EPOCHS = 2, 4

#: Adam: a scale moves by about this share of itself a step, falling to zero along a half cosine.
RATE, MOMENTUM, SECOND, EPSILON = 5e-4, 0.9, 0.95, 1e-12

#: Shares of the way that are tried on held-out sequences: on little text the whole of it goes too far (three epochs of
#: 14,000 tokens at 7e-4 took the shipped model's KLD there from .0063 to .0066).
SHARES = (1.0, 0.5, 0.25)

#: A divergence below this is rounding: nats a token.
LEAST = 1e-9


@dataclass(frozen=True)
class Tuned:
    """What came of it: KLD to the reference in nats a token before and after, geometric means over held-out sequences.

    It is kept when that is less.
    """

    steps: int
    before: float
    after: float

    @property
    def kept(self) -> bool:
        return self.after < self.before

    def described(self) -> dict[str, Any]:
        """As JSON values, for the manifest."""
        return asdict(self) | {"kept": self.kept}


def divergence(
    hidden: torch.Tensor, table: torch.Tensor, wanted: torch.Tensor, wanted_table: torch.Tensor
) -> tuple[float, torch.Tensor]:
    """Mean over rows of KL(p || q) in nats, and its gradient by `hidden`: [T, H].

    q: of logits hidden [T, H] table^T [H, V]. p: of the reference's `wanted` and `wanted_table`. Logits are made a few
    rows at a time and thrown away.
    """
    total, gradient = 0.0, torch.empty_like(hidden)
    for start in range(0, len(hidden), HEAD_ROWS):
        rows = slice(start, start + HEAD_ROWS)
        log_q = torch.log_softmax(hidden[rows] @ table.mT, dim=-1)
        log_p = torch.log_softmax(wanted[rows] @ wanted_table.mT, dim=-1)
        p = log_p.exp()
        total += float((p * (log_p - log_q)).sum(dtype=torch.float64))
        gradient[rows] = (log_q.exp_() - p) @ table / len(hidden)
    return total / len(hidden), gradient


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(math.fsum(math.log(max(value, LEAST)) for value in values) / len(values))


def tune(
    student: Student,
    reference: StreamReference,
    fitted: Sequence[Sequence[int]],
    held_out: Sequence[Sequence[int]],
    pool: ThreadPoolExecutor,
    *,
    rate: float = RATE,
    epochs: int = EPOCHS,
    seed: int = 0,
    progress: Progress = silent,
) -> tuple[Tuned, dict[str, NDArray[np.float16]]]:
    """Move the student's scales towards `reference`; what came of it, and the scales [N, G] of every tuned matrix."""
    runs = [Run.prefill(tokens, caches_from=None) for tokens in (*fitted, *held_out)]
    with torch.no_grad():
        wanted = [torch.from_numpy(trace.hidden) for trace in reference.run(runs)]
        table = student.table
        wanted_table = torch.from_numpy(
            reference.weights.whole(EMBEDDING if reference.spec.tie_word_embeddings else HEAD)
        )

    def loss(number: int) -> float:
        with torch.no_grad():
            return divergence(student.hidden(runs[number].tokens), table, wanted[number], wanted_table)[0]

    def gradient(number: int) -> tuple[float, tuple[torch.Tensor, ...]]:
        with torch.enable_grad():
            hidden = student.hidden(runs[number].tokens)
            with torch.no_grad():
                value, by_hidden = divergence(hidden, table, wanted[number], wanted_table)
            return value, torch.autograd.grad(hidden, student.changes, by_hidden)

    judged = range(len(fitted), len(runs))
    before = _geometric_mean(list(pool.map(loss, judged)))
    first: dict[int, float] = {}
    random = np.random.default_rng(seed)
    order = np.concatenate([random.permutation(len(fitted)) for _ in range(epochs)]).tolist()
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    optimizer = torch.optim.Adam(student.changes, lr=rate, betas=(MOMENTUM, SECOND), eps=EPSILON)
    for step, batch in enumerate(batches):
        progress("tune", step, len(batches), "steps")
        optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / len(batches))) / 2
        found = list(pool.map(gradient, batch))
        for number, (value, _) in zip(batch, found, strict=True):
            first.setdefault(number, max(value, LEAST))
        for place, change in enumerate(student.changes):
            shares = [grads[place] / first[number] for number, (_, grads) in zip(batch, found, strict=True)]
            change.grad = torch.stack(shares).mean(dim=0)
        optimizer.step()
    reached = [change.detach() for change in student.changes]

    def at(share: float) -> float:
        for matrix, change in zip(student.tuned.values(), reached, strict=True):
            matrix.change = (share * change).requires_grad_()
        return _geometric_mean(list(pool.map(loss, judged)))

    at(min(SHARES, key=at))
    scales = {name: matrix.settle() for name, matrix in student.tuned.items()}
    after = _geometric_mean(list(pool.map(loss, judged)))
    progress("tune", len(batches), len(batches), "steps")
    return Tuned(len(batches), before, after), scales


def tune_store(
    store: Store,
    choices: Sequence[Choice],
    rounded: StreamReference,
    sequences: Sequences,
    pool: ThreadPoolExecutor,
    progress: Progress = silent,
) -> Tuned | None:
    """Tune the matrices of `choices` in `store`, and put them back if the model came nearer; None: none is to be tuned.

    Matrices that hold the nearest codes keep their scales: with others, a few codes would not be the nearest any more,
    which `verify` could not tell from damage. So does a row that would go beyond what it takes for moved on purpose.

    rounded: the source with its table as files round it.
    """
    checkpoint = store.checkpoint
    rows = {name: checkpoint.tensors[name].shape[0] for choice in choices for name in choice.parts}
    held, fixed = {}, set()
    for choice in choices:
        for name in choice.parts:
            blocks = store.prepared(name, 0, rows[name], choice.format)
            assert blocks is not None  # every choice was put there
            held[name] = (choice.format, blocks)
            if choice.method not in MOVED:
                fixed.add(name)
    if len(fixed) == len(held):
        return None
    fitted, held_out = sequences.tokens[: sequences.fitted], sequences.tokens[sequences.fitted :]
    reference = StreamReference(SourceWeights(checkpoint))
    tuned, scales = tune(Student(rounded, held, fixed), reference, fitted, held_out, pool, progress=progress)
    for name, found in scales.items() if tuned.kept else ():
        format, blocks = held[name]
        moved = keep_within(checkpoint.rows(name, 0, rows[name]), format, replace(blocks, scales=found), blocks)
        store.put_blocks(name, format, moved)
    return tuned
