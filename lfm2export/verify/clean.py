"""What clean files give beside the limits of `tolerances`:

    python -m lfm2export.verify.clean FOLDER[=SOURCE] ...

(artifact folders, and the checkpoint where build.json does not say it) verifies them and prints the worst figure of
each kind beside its limit.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lfm2export.verify.figures import Form
from lfm2export.verify.results import FileResult
from lfm2export.verify.run import verify_artifact
from lfm2export.verify.steps import logits_scale
from lfm2export.verify.tolerances import kld_limit, tie_limit


def clean_figures(file: FileResult) -> dict[str, tuple[float, float]]:
    """Name of a limit -> (worst figure of this file, the limit); what was not measured is left out."""
    limits = file.tolerances
    found: dict[str, tuple[float, float]] = {}

    def note(name: str, figure: float | None, limit: float | None) -> None:
        if figure is not None and limit is not None:
            found[name] = (max(figure, found.get(name, (0.0, 0.0))[0]), limit)

    exact = file.arithmetic if file.arithmetic is not None else file.steps
    if exact is not None and (file.arithmetic is not None or limits.own_logits is None):
        for index, point in enumerate(exact.points):
            note("exact_logits", point.logits.max_abs / max(1.0, logits_scale(point.logits)), limits.exact_logits)
            for cache in exact.caches:
                note("exact_caches", cache.max_abs[index] / max(1.0, cache.scales[index]), limits.exact_caches)
    for route in file.routes:
        kind = "exact" if route.form is Form.EXACT else "route"
        for part, got, allowed in (
            ("logits", route.max_abs_logits, route.limit_logits),
            ("caches", route.max_abs_caches, route.limit_caches),
        ):
            limit = getattr(limits, f"{kind}_{part}")
            note(f"{kind}_{part} ({route.check})", None if got is None or not allowed else got / allowed * limit, limit)
    if file.steps is not None:
        note("own_logits", file.steps.own_logits, limits.own_logits)
        note("kld (file)", file.steps.mean_kld, kld_limit(file.dtype, limits.file_kld, file.steps))
    for text in file.text or ():
        note("kld (text)", text.kld.mean, kld_limit(file.dtype, limits.file_kld, file.steps))
    for answer in file.greedy or ():
        note("near_tie", answer.difference.gap if answer.difference else None, tie_limit(limits, file.steps))
    return found


def main(folders: Sequence[str]) -> None:
    worst: dict[tuple[str, str], tuple[float, float]] = {}
    for item in folders:
        folder, _, source = item.partition("=")
        for file in verify_artifact(Path(folder), reference=source or None).files:
            for name, (figure, limit) in clean_figures(file).items():
                key = (file.dtype, name)
                worst[key] = (max(figure, worst.get(key, (0.0, 0.0))[0]), limit)
            for failure in file.failures:
                print(f"{folder} {file.dtype}: {failure.message}")
    for (dtype, name), (figure, limit) in sorted(worst.items()):
        print(f"{dtype:6} {name:28} {figure:9.2e} of {limit:9.2e}")


if __name__ == "__main__":
    main(sys.argv[1:])
