"""Forks: the model with one matrix quantized, run beside the model itself in one pass over the file.

A fork leaves the reference at the layer of its matrix, where that one matrix is replaced, and goes on through the same
layers after it. So a layer is read once and takes every fork that has begun:

    reference  h0 -- layer 0 -- h1 -- layer 1 -- h2 -- ... -- norm -- head -- logits
    fork              layer 0 with one matrix quantized -- layer 1 -- ... -- norm -- head -- logits of the fork

The table's forks begin at the lookup and have a head of their own (see `divergence`). Hidden states lie in mapped
files; in memory are one layer and a part of the table.

Letters: T tokens of all sequences, n scored tokens, H hidden, V vocab, F forks, K columns of a matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lfm2export.calibrate.activations import Scratch, workers
from lfm2export.checkpoint import EMBEDDING, HEAD, Checkpoint
from lfm2export.matrices import Matrix
from lfm2export.progress import Progress, silent
from lfm2export.quant import rounded
from lfm2export.reference.stream import StreamReference, causal_mask
from lfm2export.reference.weights import SourceWeights
from lfm2export.sensitivity.divergence import divergences
from lfm2export.sensitivity.formats import as_stored
from lfm2export.weights import BlockFormat, WeightSource

Array = NDArray[np.float32]
Floats = NDArray[np.float64]

#: Tokens at the start of a sequence that are not scored: with nothing before them they say little.
UNSCORED = 16

#: Float32 bytes of a matrix that are quantized at once.
ROWS_BYTES = 4 << 20


@dataclass(frozen=True)
class Fork:
    """The model with `matrix` in `format`, all else float32."""

    matrix: Matrix
    format: BlockFormat


@dataclass(frozen=True)
class Forked:
    """kld: nats a token, the mean over `positions` scored tokens, per fork in the order given.

    moments: of what every matrix of a layer, and the head, reads: sum of x * x over all tokens, float64 [K], by the
    name of each source tensor.
    """

    kld: tuple[float, ...]
    moments: dict[str, Floats]
    positions: int


def run_forks(
    checkpoint: Checkpoint,
    source: WeightSource,
    forks: Sequence[Fork],
    tokens: Sequence[Sequence[int]],
    folder: Path,
    *,
    threads: int,
    progress: Progress = silent,
) -> Forked:
    """The divergence of every fork from the model itself on `tokens`, sequences of :data:`UNSCORED` + 1 to 512 each.

    Args:
        source: what files are written from: it may have blocks of its own for a matrix of a layer.
        folder: an empty one, the caller's to remove; it takes 4 bytes per fork, token and hidden feature.

    Raises:
        TensorError, SourceError: the checkpoint cannot be read, or holds NaN or Inf.
    """
    with workers(threads) as pool:
        return _Run(checkpoint, source, forks, tokens, Scratch(folder), pool, progress).run()


class _Run:
    """One call of :func:`run_forks`. `hidden` [1 + F, T, H]: the model itself, then the forks that have begun."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        source: WeightSource,
        forks: Sequence[Fork],
        tokens: Sequence[Sequence[int]],
        scratch: Scratch,
        pool: ThreadPoolExecutor,
        progress: Progress,
    ) -> None:
        self.checkpoint, self.source, self.spec = checkpoint, source, checkpoint.spec
        self.forks, self.pool = forks, pool
        self.reference = StreamReference(SourceWeights(checkpoint))
        self.sequences = [torch.tensor([list(one)]) for one in tokens]
        ends = np.cumsum([len(one) for one in tokens]).tolist()
        self.spans = [slice(*span) for span in zip([0, *ends[:-1]], ends, strict=True)]
        size = self.spec.hidden_size
        self.hidden = scratch.array("forks", (1 + len(forks), ends[-1] * size)).reshape(1 + len(forks), -1, size)
        self.moments: dict[str, Floats] = {}
        starts = [fork.matrix.layer if fork.matrix.layer is not None else 0 for fork in forks]
        self.progress, self.done = progress, 0.0
        #: One state through one layer, or through the head, is one.
        self.total = (len(forks) + 1) * (self.spec.num_hidden_layers + 1) - sum(starts)

    def run(self) -> Forked:
        self._embed()
        for layer in range(self.spec.num_hidden_layers):
            module = self.reference.layer(layer)
            begun = [i for i, fork in enumerate(self.forks, 1) if _before(fork.matrix, layer)]
            self._through(module, [(i, i) for i in begun])
            for i, fork in enumerate(self.forks, 1):
                if fork.matrix.layer == layer:
                    with self._replaced(module, fork):
                        self._through(module, [(0, i)])
            with self._measured(module, layer):
                for span in self.spans:  # one after the other, that sums do not depend on how many threads there are
                    self._forward(module, 0, 0, span)
            self._count(1)
        return self._head()

    def _embed(self) -> None:
        """The lookup: rows of the table, and of each table that a fork quantizes."""
        for span, ids in zip(self.spans, self.sequences, strict=True):
            rows = self.reference.embed(ids)[0].numpy()
            self.hidden[0, span] = rows
            for i, fork in enumerate(self.forks, 1):
                if fork.matrix.layer is None:
                    of_lookup = fork.matrix.parts == (EMBEDDING,)
                    self.hidden[i, span] = rounded(rows, fork.format) if of_lookup else rows

    def _through(self, module: Any, states: list[tuple[int, int]]) -> None:
        """States (from, to) through the layer `module`, every sequence a task."""
        tasks = [(source, target, span) for source, target in states for span in self.spans]
        list(self.pool.map(lambda task: self._forward(module, *task), tasks))
        self._count(len(states))

    def _forward(self, module: Any, source: int, target: int, span: slice) -> None:
        rows = torch.from_numpy(np.array(self.hidden[source, span]))[None]
        positions = torch.arange(rows.shape[1])[None]
        mask = causal_mask(0, rows.shape[1]) if module.is_attention_layer else None
        angles = self.reference.rotary(rows, positions)
        out = module(rows, position_embeddings=angles, attention_mask=mask, position_ids=positions)
        self.hidden[target, span] = out[0].numpy()

    @contextmanager
    def _replaced(self, module: Any, fork: Fork) -> Iterator[None]:
        """The layer with the fork's matrix quantized; a few rows at a time, and read anew afterwards."""
        self._fill(module, fork.matrix, fork.format)
        yield
        self._fill(module, fork.matrix, None)

    def _fill(self, module: Any, matrix: Matrix, format: BlockFormat | None) -> None:
        step = max(1, ROWS_BYTES // (4 * matrix.columns))
        prefix = f"model.layers.{matrix.layer}."

        def fill(task: tuple[str, int, int]) -> None:
            part, start, stop = task
            weight = module.get_parameter(part.removeprefix(prefix))
            rows = (
                self.checkpoint.rows(part, start, stop)
                if format is None
                else as_stored(self.source, part, start, stop, format)
            )
            weight[start:stop] = torch.from_numpy(rows)

        tasks = []
        for part in matrix.parts:
            rows = self.checkpoint.tensors[part].shape[0]
            tasks += [(part, start, min(start + step, rows)) for start in range(0, rows, step)]
        list(self.pool.map(fill, tasks))

    @contextmanager
    def _measured(self, module: Any, layer: int) -> Iterator[None]:
        """Add up x * x of what each matrix of the layer reads."""

        def hook(name: str) -> Any:
            def add(_: Any, inputs: tuple[torch.Tensor]) -> None:
                x = inputs[0].flatten(0, -2).double()
                self.moments[name] = self.moments.get(name, 0.0) + (x * x).sum(0).numpy()

            return add

        found = {name: one for name, one in module.named_modules() if isinstance(one, torch.nn.Linear)}
        hooks = [
            one.register_forward_pre_hook(hook(f"model.layers.{layer}.{name}.weight")) for name, one in found.items()
        ]
        try:
            yield
        finally:
            for one in hooks:
                one.remove()

    def _head(self) -> Forked:
        name = EMBEDDING if self.spec.tie_word_embeddings else HEAD
        norm = self.reference.norm()
        scored = np.concatenate([np.arange(span.start + UNSCORED, span.stop - 1) for span in self.spans])
        for state in range(len(self.hidden)):
            for span in self.spans:
                self.hidden[state, span] = norm(torch.from_numpy(np.array(self.hidden[state, span]))).numpy()
        x = np.array(self.hidden[0], np.float64)
        self.moments[name] = self.moments.get(name, 0.0) + (x * x).sum(0)
        before = self.done
        klds = divergences(
            self.hidden,
            scored,
            [fork.format if fork.matrix.parts == (name,) else None for fork in self.forks],
            lambda start, stop: self.checkpoint.rows(name, start, stop),
            self.spec.vocab_size,
            self.pool,
            lambda share: self._count(before + share * (self.total - before) - self.done),
        )
        return Forked(tuple(klds), self.moments, len(scored))

    def _count(self, passes: float) -> None:
        self.done += passes
        self.progress("sensitivity", int(self.done), self.total, "layer passes")


def _before(matrix: Matrix, layer: int) -> bool:
    return matrix.layer is None or matrix.layer < layer
