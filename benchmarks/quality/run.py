"""One run: every row made, scored by every column on the same chunks, and removed again."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib import metadata
from pathlib import Path
from unittest.mock import patch

from benchmarks.quality.make import THREADS, Made, make
from benchmarks.quality.methods import BASELINE, Method
from benchmarks.quality.results import COLUMNS, Column, Figures, Results, Row
from lfm2export import pipeline
from lfm2export.bench.machine import machine
from lfm2export.checkpoint import open_checkpoint
from lfm2export.errors import Lfm2ExportError, PromptError
from lfm2export.measures import log_softmax, perplexity
from lfm2export.progress import Progress, silent
from lfm2export.reference import load_reference, torch_threads
from lfm2export.verify.expected import ExpectedChunk, expect_text
from lfm2export.verify.prompts import make_text, open_tokenizer
from lfm2export.verify.text import measure_text

#: Cached decode takes a step for every position: every so many chunks are enough to see that its kernels agree.
DECODE_EVERY = 4

LIBRARIES = ("onnxruntime", "torch", "transformers")


def run(
    source: Path,
    methods: Sequence[Method],
    *,
    text: Path | None = None,
    chunks: int,
    known: Results | None = None,
    save: Callable[[Results], None] = lambda results: None,
    progress: Progress = silent,
) -> Results:
    """Score `methods` on the checkpoint in `source`.

    Args:
        text: held-out text of the checkpoint; None takes the shipped model's.
        chunks: how many to score, of 512 tokens, spread evenly over the text.
        known: results of an earlier run on the same machine and versions; a file with the same bytes, compared with the
            same reference, keeps its figures.
        save: gets the results so far after every row; a run takes long.

    Raises:
        PromptError: there is no tokenizer, or the text cannot be used.
        SourceError and its kinds: the checkpoint cannot be used.
    """
    checkpoint = open_checkpoint(source)
    tokenizer = open_tokenizer(source)
    if tokenizer is None:
        raise PromptError(f"{source} has no tokenizer.json to read text with; give a whole checkpoint")
    chosen = make_text(tokenizer, checkpoint.spec, text, chunks)
    versions = {name: metadata.version(name).split("+")[0] for name in LIBRARIES}
    with torch_threads(THREADS):
        expected = expect_text(load_reference(source), chosen, progress)
        task = task_of(expected)
        comparable = known is not None and (known.task, known.machine, known.versions) == (task, machine(), versions)
        results = Results(
            machine=machine(),
            versions=versions,
            checkpoint=source.name,
            parameters=checkpoint.spec.num_parameters,
            text=chosen.name,
            task=task,
            chunks=len(expected),
            decode_chunks=len(expected[::DECODE_EVERY]),
            positions=sum(len(chunk.logits) for chunk in expected),
            reference_perplexity=reference_perplexity(expected),
            baseline=BASELINE,
            rows=(),
        )
        with traced_once():
            for number, method in enumerate(methods):
                progress("methods", number, len(methods), "rows")
                before = known.row(method.name) if known is not None and comparable else None
                row = measure(method, source, expected, before, progress)
                results = replace(results, rows=(*results.rows, row))
                save(results)
    return results


@contextmanager
def traced_once() -> Iterator[None]:
    """Within, builds of one checkpoint share the trace, which is most of a small model's build; each clones it."""
    with patch.object(pipeline, "fused_graph", cache(pipeline.fused_graph)):
        yield


def measure(
    method: Method, source: Path, expected: Sequence[ExpectedChunk], before: Row | None, progress: Progress = silent
) -> Row:
    """One row; where its file cannot be made or does not run, the figures are None and the reason is said."""
    with tempfile.TemporaryDirectory(prefix="quality-") as scratch:
        try:
            made = make(method.maker, source, Path(scratch))
        except Lfm2ExportError as error:
            why = f"not run: {_one_line(error)}"
            return Row(method.name, method.family, method.maker.how, None, None, dict.fromkeys(COLUMNS), why)
        digest = made.digest()
        if before is not None and before.digest == digest and before.reason is None:
            return Row(method.name, method.family, method.maker.how, made.weight_bytes, digest, before.columns)
        columns, reason = score(made, expected, progress)
        return Row(method.name, method.family, method.maker.how, made.weight_bytes, digest, columns, reason)


def score(
    made: Made, expected: Sequence[ExpectedChunk], progress: Progress = silent
) -> tuple[dict[Column, Figures | None], str | None]:
    """(every column's figures, why one of them is missing)."""
    found: dict[Column, Figures | None] = {}
    reason = None
    for column in COLUMNS:
        chosen = expected[::DECODE_EVERY] if column == "decode" else expected
        try:
            with made.columns[column]() as scorer:
                found[column] = Figures.of(measure_text(scorer, chosen, column, progress))
        except Lfm2ExportError as error:
            found[column] = None
            reason = f"{column}: {_one_line(error)}"
    return found, reason


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def task_of(expected: Sequence[ExpectedChunk]) -> str:
    """What rows are compared with, as a digest: equal digests can be paired."""
    digest = hashlib.sha256()
    for chunk in expected:
        digest.update(f"{chunk.tokens} {chunk.first}".encode())
        digest.update(chunk.logits.tobytes())
    return digest.hexdigest()


def reference_perplexity(expected: Sequence[ExpectedChunk]) -> float:
    """The reference's own perplexity a token over the scored positions."""
    surprise = [
        -float(log_softmax(row)[token])
        for chunk in expected
        for row, token in zip(chunk.logits, chunk.tokens[chunk.first + 1 :], strict=True)
    ]
    return perplexity(surprise) or 0.0
