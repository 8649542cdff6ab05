"""One file under the clock: what steps of several tokens cost, and decode with and without drafts.

The machine may be shared: a disturbed step must not decide. So the time of an answer is that of its steps, each at the
lower quartile of all steps of that many tokens in the same way of decoding. A step's time goes to the start of the
next, with the choice of tokens, proposals, and what is taken back.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from lfm2export.generation.loop import PREFILL_TOKENS, generate
from lfm2export.generation.sampling import Sampler
from lfm2export.runtime import BufferedModel, OnnxModel
from lfm2export.steps import Logits, Mask, Tokens

#: Tokens before the steps whose cost is measured, and how often each is.
CONTEXT, REPEATS = 256, 30


@dataclass(frozen=True)
class Row:
    """One task: tokens of prompt and answer; decode tokens a second without and with drafts.

    parted: where both first differ, None if nowhere; gap: by how many logits plain decode preferred its token there.
    """

    task: str
    kind: str
    prompt: int
    answer: int
    rounds: int
    plain: float
    drafts: float
    steps: int
    drafted: int
    accepted: int
    parted: int | None = None
    gap: float | None = None

    @property
    def ratio(self) -> float:
        return self.drafts / self.plain


class Timed(BufferedModel):
    """Notes when each step after the prompt starts, and how many tokens it feeds."""

    def __init__(self, model: OnnxModel, max_length: int) -> None:
        super().__init__(model, max_length)
        self.starts: list[tuple[float, int]] = []

    def step(self, tokens: Tokens, state: Any, attention_mask: Mask | None = None) -> tuple[Logits, Any]:
        self.starts.append((time.perf_counter(), tokens.shape[1]))
        return super().step(tokens, state, attention_mask)

    def speculate(self, tokens: Tokens, state: Any) -> tuple[Logits, Any]:
        self.starts.append((time.perf_counter(), tokens.shape[1]))
        return super().speculate(tokens, state)

    def steps(self, prompt: int) -> list[tuple[int, float]]:
        """(tokens, seconds) of each step after a prompt of so many tokens; the last one ends now."""
        self.starts.append((time.perf_counter(), 0))
        decoded = self.starts[-(-prompt // PREFILL_TOKENS) :]
        return [(width, end - begin) for (begin, width), (end, _) in pairwise(decoded)]


class Given(Sampler):
    """Chooses greedily, and then says what a given answer has there: the cost is real, the choice is not its own."""

    def __init__(self, prompt: int, answer: Sequence[int]) -> None:
        super().__init__()
        self.prompt, self.answer = prompt, answer

    def __call__(self, logits: np.ndarray, tokens: Sequence[int]) -> int:
        super().__call__(logits, tokens)
        return self.answer[len(tokens) - self.prompt]


def step_costs(model: OnnxModel) -> dict[int, float]:
    """Seconds of a step by its tokens, taken in turns; all but one are taken back, as after wrong drafts."""
    loop = BufferedModel(model, CONTEXT + (REPEATS + 3) * (model.max_drafts + 1) + 1)
    random = np.random.default_rng(0)
    _, state = loop.step(random.integers(0, model.spec.vocab_size, (1, CONTEXT)), loop.new_state())
    seconds: dict[int, list[float]] = {width: [] for width in range(1, model.max_drafts + 2)}
    for _ in range(REPEATS + 2):
        for width, found in seconds.items():
            fed = random.integers(0, model.spec.vocab_size, (1, width))
            begin = time.perf_counter()
            if width == 1:
                logits, state = loop.step(fed, state)
            else:
                logits, keep = loop.speculate(fed, state)
                state = keep(1)
            logits[0].argmax(axis=-1)
            found.append(time.perf_counter() - begin)
    return {width: float(np.quantile(found[2:], 0.25)) for width, found in seconds.items()}


def measure(model: OnnxModel, task: str, kind: str, prompt: list[int], answer: list[int] | int, rounds: int) -> Row:
    """Decode after `prompt`: the `answer` given, or as many tokens of the model's own greedy one."""
    given = answer if isinstance(answer, list) else None
    count = answer if isinstance(answer, int) else len(answer)
    steps: dict[bool, list[tuple[int, float]]] = {False: [], True: []}
    found = {}
    for number in range(rounds):
        for draft in (False, True) if number % 2 == 0 else (True, False):
            sampler = Given(len(prompt), given) if given is not None else None
            loop = Timed(model, len(prompt) + count)
            found[draft] = generate(loop, prompt, max_new_tokens=count, sampler=sampler, draft=draft)
            steps[draft] += loop.steps(len(prompt))
    fast = found[True]
    return Row(
        task=task,
        kind=kind,
        prompt=len(prompt),
        answer=len(fast.tokens),
        rounds=rounds,
        plain=rate(steps[False], found[False].tokens, rounds),
        drafts=rate(steps[True], fast.tokens, rounds),
        steps=len(steps[True]) // rounds,
        drafted=fast.drafted,
        accepted=fast.accepted,
        **_difference(model, prompt, found[False].tokens, fast.tokens),
    )


def rate(steps: Sequence[tuple[int, float]], tokens: Sequence[int], rounds: int) -> float:
    """Tokens a second of `rounds` equal answers, from all their steps."""
    widths = Counter(width for width, _ in steps)
    seconds = sum(
        count * float(np.quantile([taken for fed, taken in steps if fed == width], 0.25))
        for width, count in widths.items()
    )
    return (len(tokens) - 1) * rounds / seconds


def _difference(model: OnnxModel, prompt: list[int], plain: list[int], fast: list[int]) -> dict[str, Any]:
    """Where the answers part, and how near a tie it was."""
    parted = next((place for place, (a, b) in enumerate(zip(plain, fast, strict=True)) if a != b), None)
    if parted is None:
        return {}
    logits, state = model.step(np.array([prompt]), model.new_state())
    for token in plain[:parted]:
        logits, state = model.step(np.array([[token]]), state)
    return {"parted": parted, "gap": float(logits[0, -1, plain[parted]] - logits[0, -1, fast[parted]])}
