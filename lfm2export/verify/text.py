"""KLD and perplexity over text: chunks of 512 tokens, the second half of each scored, once by prefill, once by decode.

The two routes run different kernels. A file that gives the last position's logits alone is prefilled by a copy of its
graph without that last part (`verify.variants`), on the file's own data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lfm2export import measures
from lfm2export.measures import TextMeasure
from lfm2export.progress import Progress, silent
from lfm2export.runtime import OnnxModel, fastest
from lfm2export.steps import Logits
from lfm2export.verify.expected import ExpectedChunk
from lfm2export.verify.figures import Against, TextMeasures

#: Logits [n, V] of a chunk at the positions that are scored.
Score = Callable[[ExpectedChunk], Logits]


def by_prefill(model: OnnxModel) -> Score:
    """The whole chunk at once; `model` gives every position."""

    def score(chunk: ExpectedChunk) -> Logits:
        logits, _ = model.step(np.array([chunk.tokens], np.int64), model.new_state(1))
        rows: Logits = logits.reshape(len(chunk.tokens), -1)[chunk.first : -1]
        return rows

    return score


def by_decode(model: OnnxModel) -> Score:
    """The first half at once, then token by token on the cache."""
    loop: Any = fastest(model)  # either loop takes the states that it made

    def score(chunk: ExpectedChunk) -> Logits:
        state = loop.new_state(1)
        parts = [chunk.tokens[: chunk.first + 1], *((token,) for token in chunk.tokens[chunk.first + 1 : -1])]
        rows = []
        for part in parts:
            logits, state = loop.step(np.array([part], np.int64), state)
            rows.append(logits[0, -1].copy())
        return np.stack(rows)

    return score


def measure_text(
    score: Score, expected: Sequence[ExpectedChunk], route: str, progress: Progress = silent
) -> TextMeasures:
    """Every chunk by one route.

    Raises:
        StepError: the runtime fails.
    """
    begin = time.perf_counter()
    found: list[TextMeasure] = []
    for done, chunk in enumerate(expected):
        progress(f"text by {route}", done, len(expected), "chunks")
        targets = np.array(chunk.tokens[chunk.first + 1 :])
        found.append(measures.compare_text(chunk.logits, score(chunk), targets))
    progress(f"text by {route}", len(expected), len(expected), "chunks")
    klds = [float(chunk.kld.mean()) for chunk in found]
    return TextMeasures(
        route=route,
        chunks=len(found),
        positions=sum(len(chunk.kld) for chunk in found),
        kld=measures.mean(klds),
        same_top=float(np.concatenate([chunk.top1_equal for chunk in found]).mean()),
        reference_perplexity=measures.perplexity(np.concatenate([c.reference_nll for c in found])) or 0.0,
        perplexity=measures.perplexity(np.concatenate([c.artifact_nll for c in found])) or 0.0,
        chunk_kld=tuple(klds),
        chunk_nll=tuple(float(chunk.artifact_nll.mean()) for chunk in found),
        seconds=time.perf_counter() - begin,
    )


def compare_text(mine: TextMeasures, other: TextMeasures, folder: str, dtype: str) -> Against:
    """Both on the same chunks by the same route, paired chunk by chunk."""
    return Against(
        folder=folder,
        dtype=dtype,
        route=mine.route,
        other=other,
        kld=measures.paired(other.chunk_kld, mine.chunk_kld),
        nll=measures.paired(other.chunk_nll, mine.chunk_nll),
    )
