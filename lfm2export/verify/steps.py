"""Teacher-forced steps: the artifact is fed what the reference was fed, and all that it gives is compared at each step.

A cache of layer i is made from what layers 0 to i - 1 made of the tokens, so the first cache that differs, at the
earliest step, bounds where a fault lies: behind the cache before it, and not behind itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lfm2export import contract, measures
from lfm2export.progress import Progress, silent
from lfm2export.runtime import OnnxModel
from lfm2export.steps import Logits, next_token_logits
from lfm2export.verify.expected import Expected
from lfm2export.verify.figures import CacheSeries, CheckName, Form, StepPoint, StepsMeasure
from lfm2export.verify.results import Failure


def measure_steps(
    model: OnnxModel,
    expected: Sequence[Expected],
    form: Form,
    weights: str,
    own: Sequence[Expected] | None = None,
    *,
    progress: Progress = silent,
) -> StepsMeasure:
    """Every prompt at once, then its answer token by token, on a cache of its own.

    own: the same fed to PyTorch on the file's own weights, which tells what those explain.

    Raises:
        StepError: the runtime fails at a step.
    """
    caches = model.contract.caches
    points: list[StepPoint] = []
    series: list[list[float]] = [[] for _ in caches]
    scales: list[list[float]] = [[] for _ in caches]
    shares: list[float] = []
    stage = "steps in float32" if form is Form.EXACT else "steps"
    total, done = sum(len(entry.answer) + 1 for entry in expected), 0
    for number, entry in enumerate(expected):
        state, held = model.new_state(1), 0
        for step, tokens in enumerate([entry.prompt.tokens, *((token,) for token in entry.answer)]):
            logits, state = model.step(np.array([tokens], np.int64), state)
            held += len(tokens)
            row = next_token_logits(logits)[0]
            points.append(StepPoint(number, step, held, measures.compare_logits(entry.logits[step], row)))
            if own is not None:
                shares.append(_share(own[number].logits[step], row))
            for index, (theirs, mine) in enumerate(
                zip(entry.trace.caches(held), model.read_caches(state), strict=True)
            ):
                found = measures.compare_cache(theirs, mine)
                series[index].append(found.max_abs if found.max_abs is not None else 0.0)
                scales[index].append(found.scale if found.scale is not None else 0.0)
            done += 1
            progress(stage, done, total, "steps")
    cache_series = tuple(
        CacheSeries(cache.present.name, cache.layer, cache.kind, tuple(values), tuple(scale), max(scale, default=None))
        for cache, values, scale in zip(caches, series, scales, strict=True)
    )
    klds = [point.logits.kld if point.logits.kld is not None else math.inf for point in points]
    return StepsMeasure(
        form=form,
        weights=weights,
        points=tuple(points),
        caches=cache_series,
        max_abs_logits=max((point.logits.max_abs for point in points), default=None),
        max_abs_caches=max((value for values in series for value in values), default=None),
        mean_kld=measures.mean(klds).mean,
        same_top=sum(point.logits.top1_equal for point in points) / len(points) if points else None,
        own_logits=max(shares, default=None),
        **_explained(expected, own) if own is not None else {},
    )


def _share(wanted: Logits, got: Logits) -> float:
    """The largest difference of two rows over the magnitude of what was wanted."""
    found = measures.compare_cache(wanted, got)
    assert found.max_abs is not None
    return found.max_abs / found.scale if found.scale else found.max_abs


def _explained(source: Sequence[Expected], own: Sequence[Expected]) -> dict[str, float]:
    """What rounding of the weights alone does: the reference on the file's against the reference on the source's."""
    pairs = [(theirs.logits, ours.logits) for theirs, ours in zip(source, own, strict=True)]
    return {
        "own_kld": float(np.concatenate([measures.kld(theirs, ours) for theirs, ours in pairs]).mean()),
        "own_shift": max(float(np.abs(theirs - ours).max()) for theirs, ours in pairs),
    }


def logits_scale(measure: measures.LogitsMeasure) -> float:
    """The largest magnitude of the reference's logits at this point."""
    return measure.max_abs / measure.max_rel if measure.max_rel else 0.0


def allowed(limit: float, scale: float | None, least: float = 1.0) -> float:
    """A tolerance is relative to the reference's largest magnitude where that is above `least`: so rounding grows."""
    return limit * max(least, scale or 0.0)


def first_failure(
    check: CheckName,
    found: StepsMeasure,
    names: Sequence[str],
    limit_logits: float,
    limit_caches: float,
    least: float = 1.0,
) -> Failure | None:
    """The earliest step at which something is beyond its limit, and there the first in the order of the layers.

    least: the magnitude below which limits shrink no further.
    """
    for index, point in enumerate(found.points):
        agreed: str | None = None
        where = f"prompt {point.prompt} ({names[point.prompt]!r}), step {point.step} ({point.tokens} tokens)"
        for cache in found.caches:
            limit = allowed(limit_caches, cache.scales[index], least)
            got = cache.max_abs[index]
            if not got <= limit:
                before = f"{agreed} still agrees" if agreed else "it is the first of all caches"
                message = (
                    f"{cache.tensor} (layer {cache.layer}) is off by {got:.3g}, expected at most {limit:.2g}, "
                    f"first at {where}; {before}"
                )
                return Failure(check, message, point.prompt, point.step, cache.tensor, cache.layer, got, limit)
            agreed = cache.tensor
        limit = allowed(limit_logits, logits_scale(point.logits), least)
        if not point.logits.max_abs <= limit:
            message = (
                f"logits are off by {point.logits.max_abs:.3g}, expected at most {limit:.2g}, first at {where}; "
                f"every cache agrees, so the fault lies behind {agreed}: the last layers' end, the norm or the head"
            )
            got = point.logits.max_abs
            return Failure(check, message, point.prompt, point.step, contract.LOGITS, None, got, limit)
    return None
