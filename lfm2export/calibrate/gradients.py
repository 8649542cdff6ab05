"""What the model makes of each matrix's outputs: second moments of the gradients of its next tokens' probabilities.

For a position whose next token y is drawn from the model's own distribution p, the gradient g [N] of -log p(y) by a
matrix's outputs has the mean 0, and mean g g^T is the Fisher information of p: to second order, what a change of these
outputs does to KL(p || q). Tokens of the text itself would say how strange the text is instead. One draw a position;
a sequence's losses are summed, so a gradient holds what later positions make of an output too. Tokens differ in how
much their outputs matter by orders of magnitude, so inputs are weighed by the square of g: H = mean of |g|^2 x^T x.

Letters: T tokens of a sequence, H hidden, V vocab, N rows (output features).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lfm2export.calibrate.activations import Scratch, Sequences
from lfm2export.calibrate.sampled import draw
from lfm2export.calibrate.student import HEAD_ROWS, Student
from lfm2export.checkpoint import Checkpoint
from lfm2export.progress import Progress, silent
from lfm2export.reference.stream import StreamReference
from lfm2export.reference.weights import SourceWeights

Array = NDArray[np.float32]

#: Sequences whose gradients are in memory at once.
BATCH = 2


class OutputMoments:
    """What is kept of gradients [T, N], by source tensor: mean of g g^T [N, N] over the sequences to fit to, and over
    those held out; and the square of each token's.
    """

    def __init__(self, scratch: Scratch, sequences: Sequences) -> None:
        self._scratch, self._fitted, self._rows = scratch, sequences.fitted_rows, sequences.rows
        self._products: dict[tuple[str, bool], Array] = {}
        self._squares: dict[str, Array] = {}

    def add(self, gradients: dict[str, Array], start: int, pool: ThreadPoolExecutor) -> None:
        """Of one sequence, whose rows begin at `start`."""
        held_out = start >= self._fitted

        def one(name: str) -> None:
            g = gradients[name]
            width = g.shape[1]
            if (name, held_out) not in self._products:
                self._products[name, held_out] = self._scratch.array(f"gradients.{name}.{held_out}", (width, width))
            self._products[name, held_out] += g.T @ g
            squares = self._squares.setdefault(name, np.zeros(self._rows, np.float32))
            squares[start : start + len(g)] = np.square(g).sum(axis=1)

        list(pool.map(one, gradients))

    def fitted(self, name: str) -> Array:
        mean: Array = self._products[name, False] / np.float32(self._fitted)
        return mean

    def held_out(self, name: str) -> Array:
        mean: Array = self._products[name, True] / np.float32(self._rows - self._fitted)
        return mean

    def weights(self, names: Iterable[str]) -> Array:
        """How much each token's outputs of the matrix stacked of `names` count, [T of all sequences]: the squares of
        their gradients, over the mean of those to fit to.
        """
        squares: Array = np.sum([self._squares[name] for name in names], axis=0)
        mean = float(squares[: self._fitted].mean(dtype=np.float64))
        weights: Array = squares / np.float32(mean or 1.0)
        return weights


def output_moments(
    checkpoint: Checkpoint,
    sequences: Sequences,
    scratch: Scratch,
    pool: ThreadPoolExecutor,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> OutputMoments:
    """Of every matrix of the layers of `checkpoint`, whose weights are in memory as a model meanwhile."""
    watch = _Watch(Student(StreamReference(SourceWeights(checkpoint)), {}))
    found = OutputMoments(scratch, sequences)
    starts = [start for start, _ in sequences.ranges()]
    count = len(starts)

    def gradients(number: int) -> dict[str, Array]:
        return watch.gradients(sequences.tokens[number], np.random.default_rng((seed, number)))

    for start in range(0, count, BATCH):
        progress("gradients", start, count, "sequences")
        numbers = range(start, min(start + BATCH, count))
        for number, one in zip(numbers, pool.map(gradients, numbers), strict=True):
            found.add(one, starts[number], pool)
    progress("gradients", count, count, "sequences")
    return found


class _Watch:
    """A student whose matrices tell the gradients of their outputs, to the thread that asked for them."""

    def __init__(self, student: Student) -> None:
        self.student = student
        self._local = threading.local()
        for layer, module in enumerate(student.layers):
            for name, inner in module.named_modules():
                if isinstance(inner, torch.nn.Linear):
                    inner.register_forward_hook(self._hook(f"model.layers.{layer}.{name}.weight"))

    def gradients(self, tokens: Sequence[int], random: np.random.Generator) -> dict[str, Array]:
        """[T, N] by source tensor."""
        self._local.found = {}
        with torch.enable_grad():
            hidden = self.student.hidden(tokens)
            hidden.backward(_by_hidden(hidden.detach(), self.student.table, random))
        found: dict[str, Array] = self._local.found
        return found

    def _hook(self, name: str) -> Any:
        def seen(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            output = output if output.requires_grad else output.detach().requires_grad_()
            found: dict[str, Array] = self._local.found

            def keep(gradient: torch.Tensor) -> None:
                found[name] = gradient[0].numpy().copy()

            output.register_hook(keep)
            return output

        return seen


@torch.no_grad()  # type: ignore[untyped-decorator]
def _by_hidden(hidden: torch.Tensor, table: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """Gradient of -log p(y), y drawn from p, by what the head reads: [T, H]."""
    gradient = torch.empty_like(hidden)
    for start in range(0, len(hidden), HEAD_ROWS):
        rows = slice(start, start + HEAD_ROWS)
        logits = hidden[rows] @ table.mT
        drawn = torch.from_numpy(draw(logits.numpy(), random))
        difference = torch.softmax(logits, dim=-1)
        difference[torch.arange(len(drawn)), drawn] -= 1
        gradient[rows] = difference @ table
    return gradient
