"""From figures to verdicts: each function holds one check's figures against the table and says it in one line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from lfm2export.verify.figures import (
    CachesMeasure,
    CheckName,
    Form,
    GreedyMeasure,
    RoundingMeasure,
    RouteMeasure,
    StepsMeasure,
    TextMeasures,
    Tolerances,
    Verdict,
    WeightMeasure,
)
from lfm2export.verify.results import Check, Failure
from lfm2export.verify.steps import first_failure
from lfm2export.verify.tolerances import ATTENTION, CODES, SCALES

_LAYER = re.compile(r"layers\.(\d+)\.|present(?:_conv)?\.(\d+)")


def judged(name: CheckName, summary: str, failures: Sequence[Failure | None], seconds: float) -> Check:
    """A check that was made."""
    found = tuple(failure for failure in failures if failure is not None)
    return Check(name, Verdict.FAILED if found else Verdict.PASSED, summary, found, seconds)


def not_measured(name: CheckName, why: str) -> Check:
    return Check(name, Verdict.NOT_MEASURED, why, (), 0.0)


def broken(name: CheckName, error: Exception, seconds: float) -> Check:
    """The file does not compute at all."""
    return judged(name, "the runtime failed", [Failure(name, str(error))], seconds)


def judge_weights(
    found: Sequence[WeightMeasure],
    missing: Sequence[str],
    seconds: float,
    *,
    scaled: int = 0,
    broken: str | None = None,
) -> Check:
    """No wrong value and no block above plain rounding's error; every tensor of the source is held.

    scaled: channels that powers of two moved between tensors. broken: a tensor whose powers are not undone.
    """
    name = CheckName.WEIGHTS
    failures = []
    for measure in found:
        if not measure.wrong and not measure.worse:
            continue
        what = (
            "codes are not the nearest of their block's grid" if measure.block_size else "values are not the source's"
        )
        worse = f", {measure.worse} blocks are worse than plain rounding" if measure.worse else ""
        message = f"{measure.initializer}: {measure.wrong:,} {what}{worse}, first {measure.first}"
        if measure.moved:
            message = (
                f"{measure.initializer}: {measure.worse:,} blocks are further from their weights than calibration "
                f"moves them, first {measure.first}"
            )
        layer = layer_of(measure.initializer)
        count = float(measure.wrong or measure.worse or 0)
        failures.append(Failure(name, message, None, None, measure.initializer, layer, count, 0.0))
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        failures.append(Failure(name, f"no weight of the file holds {missing[0]}{more}", tensor=missing[0]))
    if broken is not None:
        message = f"{broken}: its channels are scaled by factors that nothing undoes"
        failures.append(Failure(name, message, tensor=broken, layer=layer_of(broken)))
    worst = max((measure.error for measure in found if measure.error is not None), default=0.0)
    moved = sum(bool(measure.moved) for measure in found)
    said = f"{len(found)} weights{f', {moved} of them calibrated' if moved else ''}"
    said += f", {scaled} channels scaled by powers of two" if scaled else ""
    return judged(name, f"{said}, at most {worst:.2g} of their own size off", failures, seconds)


def judge_arithmetic(found: StepsMeasure, names: Sequence[str], limits: Tolerances, seconds: float) -> Check:
    """The exact copy against PyTorch on the same weights."""
    failure = first_failure(CheckName.ARITHMETIC, found, names, limits.exact_logits, limits.exact_caches)
    summary = f"logits within {found.max_abs_logits:.2g}, caches within {found.max_abs_caches:.2g} over {_steps(found)}"
    return judged(CheckName.ARITHMETIC, summary, [failure], seconds)


def judge_rounding(found: RoundingMeasure, limit: float, seconds: float) -> Check:
    """Products of rounded activations against numpy's model of them."""
    name, failures = CheckName.ROUNDING, []
    if not found.worst <= limit:
        message = (
            f"a product is off by {found.worst:.2g} of its token's largest value from the model of its rounding, "
            f"expected at most {limit:.2g}: {found.where}"
        )
        failures.append(Failure(name, message, tensor=found.where, got=found.worst, limit=limit))
    summary = f"{found.products} products over {found.tokens:,} tokens within {found.worst:.2g} of numpy's"
    return judged(name, summary, failures, seconds)


def judge_caches(found: CachesMeasure, seconds: float) -> Check:
    """int8 keys and values against numpy's model of them, PyTorch's, and their scales against those measured again."""
    name, failures = CheckName.CACHES, []
    if found.wrong:
        message = (
            f"{found.wrong:,} codes of keys and values are not the nearest to what was computed, first {found.first}"
        )
        failures.append(Failure(name, message, got=float(found.wrong), limit=0.0))
    if not found.worst <= ATTENTION:
        message = (
            f"attention over the codes is off by {found.worst:.2g} of its largest result, expected at most "
            f"{ATTENTION:.2g}: {found.where}"
        )
        failures.append(Failure(name, message, tensor=found.where, got=found.worst, limit=ATTENTION))
    for got, limit, what, where in (
        (found.scales_off, SCALES, "from the scale that its text gives", found.scale),
        (found.share, CODES, "of its size from PyTorch's on the file's own weights", found.share_of),
    ):
        if got is not None and not got <= limit:
            tensor = (where or "").partition(",")[0]
            message = f"{where}: {got:.2g} {what}, expected at most {limit:.2g}"
            failures.append(Failure(name, message, tensor=tensor, layer=layer_of(tensor), got=got, limit=limit))
    scales = f", scales within {found.scales_off:.2g}" if found.scales_off is not None else ""
    share = ""
    if found.share is not None and found.share_all is not None:
        share = (
            f", those of the first layer within {found.share:.2g} of PyTorch's, all caches within {found.share_all:.2g}"
        )
    summary = f"{found.codes:,} codes nearest, attention over them within {found.worst:.2g}{scales}{share}"
    return judged(name, summary, failures, seconds)


def judge_file(found: StepsMeasure, names: Sequence[str], limits: Tolerances, most_kld: float, seconds: float) -> Check:
    """The file as shipped against the source, and what its rounding of activations does."""
    name, failures = CheckName.FILE, []
    if limits.own_logits is None:
        failures.append(first_failure(name, found, names, limits.exact_logits, limits.exact_caches))
    elif found.own_logits is not None and not found.own_logits <= limits.own_logits:
        message = (
            f"logits are off by {found.own_logits:.2g} of their magnitude from PyTorch on the file's own weights, "
            f"expected at most {limits.own_logits:.2g}: more than rounding of activations explains"
        )
        failures.append(Failure(name, message, got=found.own_logits, limit=limits.own_logits))
    if found.mean_kld is None or not found.mean_kld <= most_kld:
        got = found.mean_kld if found.mean_kld is not None else float("inf")
        worst = max(found.points, key=lambda point: point.logits.kld if point.logits.kld is not None else float("inf"))
        message = (
            f"mean KLD over {_steps(found)} is {got:.3g}, expected at most {most_kld:.2g}; the worst is at "
            f"prompt {worst.prompt} ({names[worst.prompt]!r}), step {worst.step}"
        )
        failures.append(Failure(name, message, worst.prompt, worst.step, got=got, limit=most_kld))
    kld = "unmeasured" if found.mean_kld is None else f"{found.mean_kld:.2g}"
    alone = f" ({found.own_kld:.2g} from its weights alone)" if found.own_kld is not None else ""
    summary = f"KLD {kld}{alone}, same top token in {100 * (found.same_top or 0):.1f} % of {_steps(found)}"
    return judged(name, summary, failures, seconds)


def judge_norms(found: StepsMeasure, names: Sequence[str], limits: Tolerances, seconds: float) -> Check:
    """The faint copy against a faint run of PyTorch on the same weights; all is small there, so limits are shares."""
    name = CheckName.NORMS
    failure = first_failure(name, found, names, limits.exact_logits, limits.exact_caches, least=0.0)
    if failure is not None:
        failure = replace(failure, message=f"with a faint residual stream, where eps counts, {failure.message}")
    shares = [
        got / scale for cache in found.caches for got, scale in zip(cache.max_abs, cache.scales, strict=True) if scale
    ]
    summary = f"caches within {max(shares, default=0.0):.2g} of their size on a faint residual stream"
    return judged(name, summary, [failure], seconds)


def judge_routes(name: CheckName, found: Sequence[RouteMeasure], seconds: float) -> Check:
    """Every route of one check, in every form."""
    failures = []
    for route in found:
        if route.first is not None:
            form = "" if route.form is Form.SHIPPED else " (copy in float32)"
            message = f"{route.route}{form} is not {route.against}: {route.first}"
            tensor, _, _ = route.first.partition(" ")
            failures.append(Failure(name, message, tensor=tensor, layer=layer_of(tensor)))
    worst = max((route.max_abs_logits or 0.0 for route in found), default=0.0)
    routes = ", ".join(dict.fromkeys(route.route for route in found))
    return judged(name, f"{routes}: logits within {worst:.2g}", failures, seconds)


def judge_greedy(found: Sequence[GreedyMeasure], names: Sequence[str], seconds: float) -> Check:
    """All tokens equal, or parted at a near tie."""
    name, failures = CheckName.GREEDY, []
    for measure in found:
        parted = measure.difference
        if parted is None or parted.near_tie:
            continue
        shown = f": {parted.ours!r} for {parted.theirs!r}" if parted.ours is not None else ""
        message = (
            f"prompt {measure.prompt} ({names[measure.prompt]!r}) parts from the reference at token "
            f"{parted.step}{shown}; the reference prefers its own by {parted.gap:.3g}, a tie is at most "
            f"{parted.limit:.2g}"
        )
        failures.append(Failure(name, message, measure.prompt, parted.step, got=parted.gap, limit=parted.limit))
    equal = sum(measure.difference is None for measure in found)
    ties = sum(measure.difference is not None and measure.difference.near_tie for measure in found)
    summary = f"{equal} of {len(found)} answers equal the reference's" + (
        f", {ties} part at a near tie" if ties else ""
    )
    return judged(name, summary, failures, seconds)


def judge_text(found: Sequence[TextMeasures], limit: float, seconds: float) -> Check:
    """Mean KLD by each route."""
    name, failures, parts = CheckName.TEXT, [], []
    for text in found:
        got = text.kld.mean if text.kld.mean is not None else float("inf")
        if not got <= limit:
            message = f"mean KLD over text by {text.route} is {got:.3g}, expected at most {limit:.2g}"
            failures.append(Failure(name, message, got=got, limit=limit))
        error = f" ± {text.kld.standard_error:.2g}" if text.kld.standard_error is not None else ""
        parts.append(f"by {text.route} KLD {got:.2g}{error}, same top {100 * text.same_top:.1f} %, "
                     f"perplexity {text.perplexity:.3f} for {text.reference_perplexity:.3f}")  # fmt: skip
    return judged(name, "; ".join(parts), failures, seconds)


def layer_of(name: str) -> int | None:
    """The layer that an initializer or cache belongs to."""
    found = _LAYER.search(name)
    return int(found.group(1) or found.group(2)) if found else None


def _steps(found: StepsMeasure) -> str:
    prompts = len({point.prompt for point in found.points})
    return f"{len(found.points)} steps of {prompts} prompts"
