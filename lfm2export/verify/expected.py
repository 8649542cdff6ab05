"""What the reference gives, computed once and kept: all prompts and their answers in one pass, however large it is.

Letters: S steps, T tokens, V vocab.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class Own:
    """All that PyTorch gives on one set of weights."""

    prompts: list[Expected]
    long: ExpectedLong | None
    faint: Expected | None = None


def write(
    reference: MemoryReference, prompts: Sequence[Prompt], steps: int, progress: Progress = silent
) -> list[Expected]:
    """Each prompt at once, then the reference's own greedy answer of `steps` tokens, token by token."""
    found = []
    for done, prompt in enumerate(prompts):
        progress("greedy reference", done * steps, len(prompts) * steps, "tokens")
        found.append(_one(reference, prompt, reference.write(prompt.tokens, steps)))
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
    found = _expected(reference, prompts, reference.run(runs, progress), long)
    return found.prompts, found.long


def expect_own(
    reference: StreamReference,
    prompts: Sequence[Prompt],
    given: Sequence[tuple[int, ...]],
    long: tuple[int, ...] | None,
    progress: Progress = silent,
) -> Own:
    """As :func:`expect`, all at once, with the first prompt again on a faint residual stream."""
    runs = [_at_once(p.tokens, a, len(p.tokens)) for p, a in zip(prompts, given, strict=True)]
    if long is not None:
        runs.append(Run.prefill(long, caches_from=len(long)))
    *traces, faint = reference.run(runs, progress, faint=[_faint_run(prompts[0], given[0])])
    return replace(_expected(reference, prompts, traces, long), faint=_one(reference, prompts[0], faint))


def expect_faint(
    reference: StreamReference, prompt: Prompt, given: tuple[int, ...], progress: Progress = silent
) -> Expected:
    """One prompt, and one token behind it, on a faint residual stream (`reference.run.FAINT`)."""
    return _one(reference, prompt, reference.run([], progress, faint=[_faint_run(prompt, given)])[0])


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


def _faint_run(prompt: Prompt, given: Sequence[int]) -> Run:
    return _at_once(prompt.tokens, given[:1], len(prompt.tokens))


def _one(reference: Reference, prompt: Prompt, trace: Trace) -> Expected:
    length = len(prompt.tokens)
    return Expected(prompt, trace.run.tokens[length:], reference.logits(trace.hidden[length - 1 :]), trace)


def _expected(
    reference: Reference, prompts: Sequence[Prompt], traces: Sequence[Trace], long: tuple[int, ...] | None
) -> Own:
    """One trace a prompt, and one for `long` behind them."""
    rows = [trace.hidden[len(p.tokens) - 1 :] for p, trace in zip(prompts, traces, strict=False)]
    if long is not None:
        rows.append(traces[-1].hidden[-1:])
    # One call: a streamed head is read once for all rows.
    logits = np.split(reference.logits(np.concatenate(rows)), np.cumsum([len(part) for part in rows])[:-1])
    found = [
        Expected(p, trace.run.tokens[len(p.tokens) :], part, trace)
        for p, part, trace in zip(prompts, logits, traces, strict=False)
    ]
    return Own(found, ExpectedLong(long, logits[-1][0], traces[-1]) if long is not None else None)
