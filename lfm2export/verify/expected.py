"""What the reference gives, computed once and kept: all prompts and their answers in one pass, however large it is.

Letters: S steps, T tokens, V vocab.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lfm2export.progress import Progress, silent
from lfm2export.reference.run import Run, Trace
from lfm2export.steps import Logits
from lfm2export.verify.prompts import Prompt, Text

if TYPE_CHECKING:
    from lfm2export.reference.memory import MemoryReference
    from lfm2export.reference.stream import StreamReference

    Reference = MemoryReference | StreamReference


@dataclass(frozen=True)
class Expected:
    """One prompt and its answer: logits [1 + S, V] after the prompt and after each answer token; caches by length."""

    prompt: Prompt
    answer: tuple[int, ...]
    logits: Logits
    trace: Trace


@dataclass(frozen=True)
class ExpectedLong:
    """A long prompt: logits [V] after its last token, caches after it."""

    tokens: tuple[int, ...]
    logits: Logits
    trace: Trace


@dataclass(frozen=True)
class ExpectedChunk:
    """One chunk of text: logits [n, V] at positions [first, T - 1), each of which predicts the next token."""

    tokens: tuple[int, ...]
    first: int
    logits: Logits


def answers(reference: Reference, prompts: Sequence[Prompt], steps: int, progress: Progress) -> list[tuple[int, ...]]:
    """The reference's greedy continuation of each prompt by `steps` tokens; what `model.generate` gives."""
    found = []
    for done, prompt in enumerate(prompts):
        progress("greedy reference", done, len(prompts), "prompts")
        state, tokens, answer = reference.new_state(1), np.array([prompt.tokens], np.int64), []
        for _ in range(steps):
            logits, state = reference.step(tokens, state)
            answer.append(int(logits[0, -1].argmax()))
            tokens = np.array([[answer[-1]]], np.int64)
        found.append(tuple(answer))
    progress("greedy reference", len(prompts), len(prompts), "prompts")
    return found


def expect(
    reference: Reference,
    prompts: Sequence[Prompt],
    given: Sequence[tuple[int, ...]],
    long: tuple[int, ...] | None,
    progress: Progress = silent,
) -> tuple[list[Expected], ExpectedLong | None]:
    """Teacher-forced: each prompt at once, then its answer (`given`) token by token; `long` at once."""
    runs = [Run.cached(p.tokens, a, caches_from=len(p.tokens)) for p, a in zip(prompts, given, strict=True)]
    if long is not None:
        runs.append(Run.prefill(long, caches_from=len(long)))
    traces = reference.run(runs, progress)
    rows = [trace.hidden[len(p.tokens) - 1 :] for p, trace in zip(prompts, traces, strict=False)]
    if long is not None:
        rows.append(traces[-1].hidden[-1:])
    logits = np.split(reference.logits(np.concatenate(rows)), np.cumsum([len(part) for part in rows])[:-1])
    found = [
        Expected(p, tuple(a), part, trace) for p, a, part, trace in zip(prompts, given, logits, traces, strict=False)
    ]
    return found, ExpectedLong(long, logits[-1][0], traces[-1]) if long is not None else None


def expect_text(reference: Reference, text: Text, progress: Progress = silent) -> list[ExpectedChunk]:
    """The second half of every chunk, by one pass over the model."""
    runs = [Run.prefill(chunk, caches_from=None) for chunk in text.chunks]
    found = []
    for run, trace in zip(runs, reference.run(runs, progress), strict=True):
        first = len(run.tokens) // 2
        found.append(ExpectedChunk(run.tokens, first, reference.logits(trace.hidden[first:-1])))
    return found
