"""What verification measures, in numpy and nothing else. A figure that was not measured is None, never 0.

KLD is the reference's expectation of log(reference / artifact), in nats, from log-softmaxes in float64.
Letters: V vocab, n rows, B batch, K KV heads, P slots, D head_dim, H hidden, L conv_L_cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class LogitsMeasure:
    """One position: the artifact's next-token logits beside the reference's.

    max_abs: largest difference. max_rel: the same over the reference's largest magnitude. cosine: of the two vectors.
    kld: nats. top1_equal: both prefer the same token. rank: how many tokens the artifact prefers to the reference's
    best (0 when none). margin: by how much the reference prefers its best to its second, in logits: a difference
    smaller than that cannot flip a greedy choice unless max_abs is at least half of it.
    A non-finite artifact has max_abs infinite, top1_equal false, and the rest unmeasured.
    """

    max_abs: float
    max_rel: float | None
    cosine: float | None
    kld: float | None
    top1_equal: bool
    rank: int | None
    margin: float | None


@dataclass(frozen=True)
class CacheMeasure:
    """One cache tensor: the largest difference, where it is (an index of the tensor), and the reference's magnitude.

    max_abs is None when no slot was compared, and infinite when the artifact's values are not finite.
    """

    max_abs: float | None
    where: tuple[int, ...] | None
    scale: float | None


@dataclass(frozen=True)
class Mean:
    """A mean over `count` values and its standard error; None where there were too few values."""

    mean: float | None
    standard_error: float | None
    count: int


@dataclass(frozen=True)
class TextMeasure:
    """Rows of logits over a text, one entry per row: KLD in nats, top-1 equality, and both models' surprise in nats."""

    kld: Doubles
    top1_equal: NDArray[np.bool_]
    reference_nll: Doubles
    artifact_nll: Doubles


def log_softmax(logits: Array) -> Doubles:
    """Log-probabilities along the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True).astype(np.float64)
    result: Doubles = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def kld(reference: Array, artifact: Array) -> Doubles:
    """KL(reference || artifact) of each row [..., V], in nats; infinite where the artifact's row is not finite."""
    finite = np.asarray(np.isfinite(artifact).all(axis=-1, keepdims=True))
    divergence = _divergence(log_softmax(reference), log_softmax(np.where(finite, artifact, 0)))
    result: Doubles = np.where(finite[..., 0], divergence, np.inf)
    return result


def _divergence(p: Doubles, q: Doubles) -> Doubles:
    """Of log-probabilities; rounding may leave a sum of -1e-17 for equal rows, but it is never negative."""
    result: Doubles = np.maximum((np.exp(p) * (p - q)).sum(axis=-1), 0.0)
    return result


def compare_logits(reference: Array, artifact: Array) -> LogitsMeasure:
    """One row [V] of each.

    Raises:
        ValueError: shapes differ, or the reference is not finite.
    """
    _same_shape(reference, artifact)
    if not np.isfinite(reference).all():
        raise ValueError("the reference's logits are not finite; there is nothing to compare with")
    best = int(np.argmax(reference))
    margin = None
    if reference.size > 1:
        second, first = np.partition(reference, -2)[-2:]
        margin = float(first) - float(second)
    if not np.isfinite(artifact).all():
        return LogitsMeasure(math.inf, None, None, None, False, None, margin)
    r, a = reference.astype(np.float64), artifact.astype(np.float64)
    max_abs = float(np.abs(a - r).max())
    scale = float(np.abs(r).max())
    return LogitsMeasure(
        max_abs=max_abs,
        max_rel=max_abs / scale if scale else None,
        cosine=cosine(r, a),
        kld=float(kld(r, a)),
        top1_equal=int(np.argmax(artifact)) == best,
        rank=int((artifact > artifact[best]).sum()),
        margin=margin,
    )


def cosine(first: Array, second: Array) -> float | None:
    """Cosine of two vectors in float64, clipped to [-1, 1]; None when one is all zero."""
    a, b = first.astype(np.float64).ravel(), second.astype(np.float64).ravel()
    # Scaling first keeps the squares of tiny or huge values representable.
    high_a, high_b = float(np.abs(a).max(initial=0)), float(np.abs(b).max(initial=0))
    if not high_a or not high_b:
        return None
    a, b = a / high_a, b / high_b
    return float(np.clip(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), -1, 1))


def compare_cache(reference: Array, artifact: Array, lengths: Sequence[int] | None = None) -> CacheMeasure:
    """A conv state [B, H, L], or keys or values [B, K, P, D] with `lengths` [B]: only each row's own slots count.

    The artifact's P may be larger than the reference's (a preallocated buffer).

    Raises:
        ValueError: shapes do not fit, or a length exceeds the slots there are.
    """
    if lengths is None:
        _same_shape(reference, artifact)
        return _compare([((), reference, artifact)])
    if reference.ndim != 4 or artifact.ndim != 4 or not len(lengths) == len(reference) == len(artifact):
        raise ValueError(f"caches {reference.shape} and {artifact.shape} do not fit {len(lengths)} lengths")
    if max(lengths, default=0) > min(reference.shape[2], artifact.shape[2]):
        raise ValueError(f"lengths {list(lengths)} exceed the slots of {reference.shape} or {artifact.shape}")
    rows = ((r[:, :count], a[:, :count]) for r, a, count in zip(reference, artifact, lengths, strict=True))
    return _compare(((index,), r, a) for index, (r, a) in enumerate(rows))


def _compare(parts: Iterable[tuple[tuple[int, ...], Array, Array]]) -> CacheMeasure:
    worst: float | None = None
    where: tuple[int, ...] | None = None
    scale = 0.0
    for prefix, reference, artifact in parts:
        _same_shape(reference, artifact)
        if not reference.size:
            continue
        difference = np.abs(artifact.astype(np.float64) - reference.astype(np.float64))
        difference[~np.isfinite(difference)] = math.inf
        place = np.unravel_index(int(np.argmax(difference)), difference.shape)
        if worst is None or difference[place] > worst:
            worst, where = float(difference[place]), prefix + tuple(int(axis) for axis in place)
        scale = max(scale, float(np.abs(reference).max()))
    return CacheMeasure(worst, where, scale if worst is not None else None)


def compare_text(reference: Array, artifact: Array, targets: Array) -> TextMeasure:
    """Rows [n, V] of both and the token [n] that follows each. Row by row in float64, so n may be large.

    Raises:
        ValueError: shapes differ.
    """
    _same_shape(reference, artifact)
    if targets.shape != reference.shape[:1]:
        raise ValueError(f"targets have shape {targets.shape}, expected {reference.shape[:1]}")
    count = len(targets)
    result = TextMeasure(np.empty(count), np.empty(count, np.bool_), np.empty(count), np.empty(count))
    for row, target in enumerate(targets):
        finite = bool(np.isfinite(artifact[row]).all())
        p = log_softmax(reference[row])
        q = log_softmax(artifact[row]) if finite else p
        result.kld[row] = _divergence(p, q) if finite else np.inf
        result.top1_equal[row] = finite and np.argmax(reference[row]) == np.argmax(artifact[row])
        result.reference_nll[row] = -p[target]
        result.artifact_nll[row] = -q[target] if finite else np.inf
    return result


def mean(values: Iterable[float]) -> Mean:
    """Mean and standard error of independent values, such as one per chunk of text; infinite if one is not finite."""
    array = np.asarray(list(values), np.float64)
    if not array.size:
        return Mean(None, None, 0)
    if not np.isfinite(array).all():
        return Mean(math.inf, None, int(array.size))
    error = float(array.std(ddof=1) / math.sqrt(array.size)) if array.size > 1 else None
    return Mean(float(array.mean()), error, int(array.size))


def paired(first: Sequence[float], second: Sequence[float]) -> Mean:
    """Mean of `second` - `first` over the same chunks, with the standard error of the differences.

    Raises:
        ValueError: the two have different lengths.
    """
    return mean(b - a for a, b in zip(first, second, strict=True))


def perplexity(nll: Iterable[float]) -> float | None:
    """exp of the mean surprise in nats; None without values, infinite where it overflows."""
    average = mean(nll).mean
    if average is None:
        return None
    return math.exp(average) if average < 700 else math.inf


def _same_shape(reference: Array, artifact: Array) -> None:
    if reference.shape != artifact.shape:
        raise ValueError(f"shapes differ: the reference has {reference.shape}, the artifact {artifact.shape}")
