"""What the reference gives, computed once and kept: all prompts and their answers in one pass, however large it is.

Letters: S steps, T tokens, V vocab.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lfm2export.progress import Progress, silent
from lfm2export.reference.run import Floats, Run, Trace
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
    """A chunk of text: the reference's last rows [n, H] at positions [first, T - 1), each predicting the next token."""

    tokens: tuple[int, ...]
    first: int
    hidden: Floats
    reference: Reference

    @property
    def logits(self) -> Logits:
        """[n, V], made anew each time: they are 30 times larger than what they are made of."""
        return self.reference.logits(self.hidden)


def write(
    reference: MemoryReference, prompts: Sequence[Prompt], steps: int, progress: Progress = silent
) -> list[Expected]:
    """Each prompt at once, then the reference's own greedy answer of `steps` tokens, token by token."""
    found = []
    for done, prompt in enumerate(prompts):
        progress("greedy reference", done * steps, len(prompts) * steps, "tokens")
        trace, length = reference.write(prompt.tokens, steps), len(prompt.tokens)
        logits = reference.logits(trace.hidden[length - 1 :])
        found.append(Expected(prompt, trace.run.tokens[length:], logits, trace))
    progress("greedy reference", len(prompts) * steps, len(prompts) * steps, "tokens")
    return found


def expect(
    reference: Reference,
    prompts: Sequence[Prompt],
    given: Sequence[tuple[int, ...]],
    long: tuple[int, ...] | None,
    *,
    cached: bool,
    progress: Progress = silent,
) -> tuple[list[Expected], ExpectedLong | None]:
    """Teacher-forced: each prompt with its answer (`given`), and `long` at once, in one pass.

    cached: the answer token by token on the cache, as generation does; else prompt and answer at once, which gives the
    same within rounding in a fraction of the time.
    """
    run = Run.cached if cached else _at_once
    runs = [run(p.tokens, a, len(p.tokens)) for p, a in zip(prompts, given, strict=True)]
    if long is not None:
        runs.append(Run.prefill(long, caches_from=len(long)))
    traces = reference.run(runs, progress)
    rows = [trace.hidden[len(p.tokens) - 1 :] for p, trace in zip(prompts, traces, strict=False)]
    if long is not None:
        rows.append(traces[-1].hidden[-1:])
    # One call: a streamed head is read once for all rows.
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
        found.append(ExpectedChunk(run.tokens, first, trace.hidden[first:-1].copy(), reference))
    return found


def _at_once(prompt: Sequence[int], answer: Sequence[int], caches_from: int) -> Run:
    return Run.prefill((*prompt, *answer), caches_from)
