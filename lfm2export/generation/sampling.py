"""From next-token logits to a token, in numpy: the values of transformers' logits processors, in their order.

transformers 5.24 applies the repetition penalty first (also when it decodes greedily), then temperature, top_k, top_p
and min_p. The draw itself is ours: the inverse cumulative distribution in float64 from a seeded numpy generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lfm2export.errors import PromptError

Scores = NDArray[np.float32]
Float = TypeVar("Float", np.float32, np.float64)


#: Least and greatest values. Smaller temperatures and penalties leave the range of float32, where logits live.
LIMITS = {
    "temperature": (1e-6, 1e6),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (1e-6, 1e6),
    "top_k": (0, 2**31 - 1),
    "top_p": (0.0, 1.0),
}


def in_range(name: str, value: float) -> bool:
    """Whether `value` can be that of `name`; NaN is no value, and 0 is a temperature: greedy."""
    low, high = LIMITS[name]
    return low <= value <= high or (name == "temperature" and value == 0)


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. None, 0 or 1.0 (penalty) means off; temperature 0 is greedy.

    Raises:
        PromptError: a value outside its range.
    """

    temperature: float = 0.0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if value is not None and not in_range(name, value):
                off = {"temperature": "0 (greedy), or ", "repetition_penalty": "1.0 (off), or "}.get(name, "")
                raise PromptError(f"{name} is {value}, expected {off}a number from {low:g} to {high:g}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


GREEDY = Sampling()

#: What the model card recommends, with the top_k that transformers adds where it samples.
CARD = Sampling(temperature=0.3, min_p=0.15, repetition_penalty=1.05, top_k=50)


class Sampler:
    """Chooses tokens by `sampling`; equal seeds give equal draws. `seed` is the one in use, drawn if none is given."""

    def __init__(self, sampling: Sampling = GREEDY, seed: int | None = None) -> None:
        if seed is not None and seed < 0:
            raise PromptError(f"seed is {seed}, expected 0 or more")
        self.sampling = sampling
        self.seed = seed if seed is not None else int(np.random.SeedSequence().generate_state(1)[0])
        self._random = np.random.default_rng(self.seed)

    def __call__(self, logits: Scores, tokens: Sequence[int]) -> int:
        """The next token after `tokens` (prompt and answer so far) given its `logits` [V]."""
        scores = process(logits, tokens, self.sampling)
        if self.sampling.greedy:
            return int(np.argmax(scores))
        cumulative = np.cumsum(softmax(scores.astype(np.float64)))
        drawn = int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))
        return min(drawn, int(np.flatnonzero(np.isfinite(scores))[-1]))


def process(logits: Scores, tokens: Sequence[int], sampling: Sampling) -> Scores:
    """`logits` [V] after every processor of `sampling`; a removed token scores -inf."""
    scores = repetition_penalty(logits, tokens, sampling.repetition_penalty)
    if sampling.greedy:
        return scores
    scores = temperature(scores, sampling.temperature)
    if sampling.top_k:
        scores = top_k(scores, sampling.top_k)
    if sampling.top_p is not None and sampling.top_p < 1:
        scores = top_p(scores, sampling.top_p)
    if sampling.min_p:
        scores = min_p(scores, sampling.min_p)
    return scores


def repetition_penalty(scores: Scores, tokens: Sequence[int], penalty: float) -> Scores:
    """Every token of `tokens` once: a positive score is divided by `penalty`, a negative one multiplied."""
    if penalty == 1:
        return scores
    seen = np.unique(np.asarray(tokens, np.int64))
    seen = seen[seen < scores.shape[-1]]
    if not seen.size:
        return scores
    penalized = scores.copy()
    chosen = scores[seen]
    penalized[seen] = np.where(chosen < 0, chosen * np.float32(penalty), chosen / np.float32(penalty))
    return penalized


def temperature(scores: Scores, value: float) -> Scores:
    """`scores` over the temperature."""
    divided: Scores = scores / np.float32(value)
    return divided


def top_k(scores: Scores, count: int) -> Scores:
    """Keep scores not below the `count`-th largest; ties with it stay."""
    count = min(count, scores.shape[-1])
    kth = np.partition(scores, -count)[-count]
    return _removed(scores, scores < kth)


def top_p(scores: Scores, mass: float) -> Scores:
    """Keep the smallest set of best tokens whose probability reaches `mass`, and always the best one."""
    order = np.argsort(scores, kind="stable")
    cumulative = np.cumsum(softmax(scores[order]), dtype=np.float32)
    drop = cumulative <= np.float32(1 - mass)
    drop[-1] = False
    mask = np.empty_like(drop)
    mask[order] = drop
    return _removed(scores, mask)


def min_p(scores: Scores, fraction: float) -> Scores:
    """Keep tokens at least `fraction` as probable as the most probable one."""
    probabilities = softmax(scores)
    return _removed(scores, probabilities < np.float32(fraction) * probabilities.max())


def softmax(scores: NDArray[Float]) -> NDArray[Float]:
    """Probabilities of `scores` [V] in their own precision."""
    exponentials = np.exp(scores - scores.max())
    probabilities: NDArray[Float] = exponentials / exponentials.sum()
    return probabilities


def _removed(scores: Scores, mask: NDArray[np.bool_]) -> Scores:
    return np.where(mask, np.float32(-np.inf), scores)
