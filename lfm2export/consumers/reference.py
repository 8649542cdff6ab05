"""The Python loop as the reference of a consumer on the same file, and what "equal tokens" means.

float32: equal. Any other file: equal, or at the first difference the reference's own preference for its token over the
consumer's is below the noise of the kernels. The noise is measured: the largest difference between the consumer's
highest logits and the reference's at the same tokens, over the steps before the difference, where both were fed the
same. (The step of the difference itself says nothing: two numbers that differ by their distance explain any choice.)
Two logits that are each off by the noise can change places when they are less than twice the noise apart. And the noise
has a limit of its own (:data:`NOISE_LIMITS`), or a wrong graph would excuse itself.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lfm2export.consumers.result import Check, Verdict
from lfm2export.generation.sampling import repetition_penalty
from lfm2export.runtime import OnnxModel

#: Per step the consumer's highest logits: [token, logit].
Top = Sequence[Sequence[float]]

#: Largest difference of a logit that is still the same computation. Measured on the shipped model: fp32 2e-6 in Node,
#: 1e-5 in wasm, 2e-4 in WebGPU; fp16 and q4f16 up to .1; q8 and q4 0 in Node, .05 in genai, up to .21 in wasm, which
#: keeps activations in float32 (the same files at accuracy_level 0 in Python differ by those very .21).
NOISE_LIMITS = {"fp32": 1e-3, "fp16": 0.3, "q8": 0.6, "q4": 0.6, "q4f16": 0.6}

#: Steps before a difference that must have been measured for the noise to mean something.
NOISE_STEPS = 4


@dataclass(frozen=True)
class Continuation:
    """Greedy tokens after `prompt`, each with the logits [V] it was chosen from."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logits: tuple[NDArray[np.float32], ...] = field(repr=False)

    def first(self, count: int) -> Continuation:
        """Its first `count` tokens."""
        return Continuation(self.prompt, self.tokens[:count], self.logits[:count])


def continuation(
    model: OnnxModel, prompt: Sequence[int], limit: int, eos_ids: Collection[int], penalty: float = 1.0
) -> Continuation:
    """Continue `prompt` greedily by at most `limit` tokens; logits are those after the repetition penalty."""
    state, fed = model.new_state(), list(prompt)
    tokens: list[int] = []
    rows: list[NDArray[np.float32]] = []
    while len(tokens) < limit:
        logits, state = model.step(np.array([fed], np.int64), state)
        scores = repetition_penalty(logits[0, -1], [*prompt, *tokens], penalty)
        rows.append(scores)
        tokens.append(int(np.argmax(scores)))
        if tokens[-1] in eos_ids:
            break
        fed = tokens[-1:]
    return Continuation(tuple(prompt), tuple(tokens), tuple(rows))


@dataclass(frozen=True)
class Comparison:
    """One run of a consumer beside the reference. at: step of the first difference, None if there is none.

    noise: differences of logits, one for each step before `at`. margin: what the reference prefers its own token by.
    """

    name: str
    wanted: tuple[int, ...]
    got: tuple[int, ...]
    at: int | None
    noise: tuple[float, ...]
    margin: float | None


def compare(name: str, wanted: Continuation, got: Sequence[int], top: Sequence[Top]) -> Comparison:
    """Compare a consumer's tokens with the reference's."""
    got = tuple(int(token) for token in got)
    steps = len(wanted.tokens)
    at = next((k for k in range(steps) if k >= len(got) or got[k] != wanted.tokens[k]), None)
    if at is None and len(got) > steps:
        at = steps
    same = steps if at is None else at
    noise = tuple(
        max(abs(float(wanted.logits[k][int(token)]) - value) for token, value in top[k])
        for k in range(min(same, len(top)))
    )
    margin = None
    if at is not None and at < min(steps, len(got)):
        margin = float(wanted.logits[at][wanted.tokens[at]] - wanted.logits[at][got[at]])
    return Comparison(name, wanted.tokens, got, at, noise, margin)


def judge(dtype: str, comparisons: Sequence[Comparison]) -> tuple[list[Check], float | None]:
    """A check per comparison, and the noise over all of them; they share it, for one file has one set of kernels."""
    measured = [value for comparison in comparisons for value in comparison.noise]
    noise = max(measured) if measured else None
    checks = [_check(dtype, comparison, noise, len(measured)) for comparison in comparisons]
    if noise is not None:
        limit = NOISE_LIMITS[dtype]
        verdict = Verdict.PASSED if noise <= limit else Verdict.FAILED
        checks.append(
            Check("logits", verdict, f"differ by {noise:.3g} at most over {len(measured)} steps, limit {limit:g}")
        )
    return checks, noise


def _check(dtype: str, found: Comparison, noise: float | None, steps: int) -> Check:
    name = f"tokens: {found.name}"
    if found.at is None:
        return Check(name, Verdict.PASSED, f"{len(found.got)} tokens equal")
    if found.margin is None:
        lengths = f"{len(found.got)} tokens, expected {len(found.wanted)}, equal as far as both go"
        return Check(name, Verdict.FAILED, lengths)
    where = f"token {found.at} is {found.got[found.at]}, expected {found.wanted[found.at]} by {found.margin:.3g}"
    if dtype == "fp32":
        return Check(name, Verdict.FAILED, where)
    if noise is None or steps < NOISE_STEPS:
        return Check(name, Verdict.FAILED, f"{where}; too few equal steps before it to know the noise")
    near = found.margin <= 2 * min(noise, NOISE_LIMITS[dtype])
    verdict = Verdict.PASSED if near else Verdict.FAILED
    return Check(name, verdict, f"{where}; the kernels' noise is {noise:.3g}: {'a near tie' if near else 'no tie'}")
