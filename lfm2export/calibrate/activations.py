"""Activations of the calibration text in files, and what is made of them: second moments and output errors.

Everything here may be larger than memory: hidden states, the inputs of one matrix, its second moments and their factor
lie in mapped files, which the system writes out and reads back as it likes. Work is cut into tasks by shapes alone,
each task runs on one thread, and what tasks add up is added in one order, so results do not depend on how many threads
there are.

Letters: T tokens of all sequences, K columns (input features), N rows (output features).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lfm2export.errors import PromptError
from lfm2export.reference import torch_threads

Array = NDArray[np.float32]

#: Columns of a tile of second moments, and tokens that one product adds to it.
TILE, TOKENS = 1024, 2048

#: Of this many sequences one is held out: what a choice is judged by was not fitted to.
HELD_OUT = 8


@dataclass(frozen=True)
class Sequences:
    """Token sequences and the rows that they have in every array of activations: first those that matrices are fitted
    to, then those held out, so that both are ranges of rows.
    """

    tokens: tuple[tuple[int, ...], ...]
    fitted: int

    @classmethod
    def split(cls, tokens: Sequence[Sequence[int]]) -> Sequences:
        """Every :data:`HELD_OUT`-th sequence is held out, at least one.

        Raises:
            PromptError: there are too few to fit to one and judge by another.
        """
        if len(tokens) < 2:
            raise PromptError(
                f"the calibration text makes {len(tokens)} sequence, expected 2 or more; give a longer one"
            )
        kept = [tuple(one) for one in tokens]
        held = {number for number in range(len(kept)) if number % HELD_OUT == HELD_OUT // 2} or {len(kept) - 1}
        first = [one for number, one in enumerate(kept) if number not in held]
        return cls((*first, *(one for number, one in enumerate(kept) if number in held)), len(first))

    def ranges(self) -> list[tuple[int, int]]:
        """[start, stop) of the rows of each sequence."""
        ends = np.cumsum([len(one) for one in self.tokens]).tolist()
        return list(zip([0, *ends[:-1]], ends, strict=True))

    @property
    def rows(self) -> int:
        return sum(len(one) for one in self.tokens)

    @property
    def fitted_rows(self) -> int:
        return sum(len(one) for one in self.tokens[: self.fitted])


class Scratch:
    """Float32 arrays in files of `folder`. An array asked for again by its name takes the place of the former."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def array(self, name: str, shape: tuple[int, int]) -> Array:
        path = self.folder / f"{name}.f32"
        path.unlink(missing_ok=True)
        return np.memmap(path, np.float32, "w+", shape=shape)


@contextmanager
def workers(threads: int) -> Iterator[ThreadPoolExecutor]:
    """`threads` workers, while PyTorch itself uses one thread a task."""
    with torch_threads(1), ThreadPoolExecutor(threads, thread_name_prefix="lfm2export-calibrate") as pool:
        yield pool


def second_moments(inputs: Array, out: Array, pool: ThreadPoolExecutor) -> Array:
    """mean of x^T x over the rows x of `inputs` [T, K], written to `out` [K, K] and returned; tile by tile."""
    source, target = torch.from_numpy(inputs), torch.from_numpy(out)
    columns = inputs.shape[1]
    starts = range(0, columns, TILE)

    def tile(place: tuple[int, int]) -> None:
        first, second = (slice(start, min(start + TILE, columns)) for start in place)
        total = torch.zeros(first.stop - first.start, second.stop - second.start)
        for start in range(0, len(inputs), TOKENS):
            rows = source[start : start + TOKENS]
            total.addmm_(rows[:, first].mT, rows[:, second])
        total /= len(inputs)
        target[first, second] = total
        target[second, first] = total.mT

    list(pool.map(tile, [(i, j) for i in starts for j in starts if j <= i]))
    return out


def output_error(error: Array, inputs: Array) -> float:
    """sum over the rows x of `inputs` [T, K] and the rows e of `error` [N, K] of (x e)**2."""
    total = 0.0
    rows = torch.from_numpy(error).mT
    for start in range(0, len(inputs), TOKENS):
        product = torch.from_numpy(inputs[start : start + TOKENS]) @ rows
        total += float((product * product).sum(dtype=torch.float64))
    return total
