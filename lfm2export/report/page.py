"""parity.html: one file that opens offline, asks for nothing, and fits a phone and dark mode."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any

from lfm2export.report import facts, plots, words
from lfm2export.report.consumers import ConsumerRow
from lfm2export.report.facts import Sizes
from lfm2export.report.formats import FormatTable
from lfm2export.verify.figures import CheckName, Verdict
from lfm2export.verify.results import Check, FileResult, Verification

FILE = "parity.html"

#: At most so many failures on the page; parity.json has them all.
MOST_FAILURES = 50

_MARKS = {Verdict.PASSED: "✓", Verdict.FAILED: "✗", Verdict.NOT_MEASURED: "–"}
_SHORT = {Verdict.PASSED: "", Verdict.FAILED: "failed", Verdict.NOT_MEASURED: ""}


def render(
    result: Verification,
    sizes: Sizes,
    consumers: Sequence[ConsumerRow] = (),
    formats: FormatTable | None = None,
) -> str:
    """The whole page."""
    import jinja2
    from markupsafe import Markup

    def printable(value: Any) -> Any:
        return words.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=printable
    )
    environment.filters |= {"figure": words.figure, "mean": words.mean, "seconds": words.seconds, "shown": words.shown}
    failures = [(found, file.dtype, facts.place(found, result)) for file in result.files for found in file.failures]
    return environment.from_string(_read("parity.html.jinja")).render(
        result=result,
        consumers=consumers,
        formats=formats,
        formats_line=facts.formats_line(formats) if formats is not None else "",
        css=Markup(_read("parity.css")),
        headline=facts.headline(result),
        reference=facts.reference_line(result),
        reference_name=facts.reference_name(result),
        failures=failures[:MOST_FAILURES],
        more_failures=max(0, len(failures) - MOST_FAILURES),
        summary=facts.summary,
        table=facts.table(result),
        compared=facts.compared(result),
        checks=[name for name in CheckName if any(check_of(file, name) for file in result.files)],
        check_of=check_of,
        check_words=words.CHECKS,
        verdicts=words.VERDICTS,
        short_verdicts=_SHORT,
        marks=_MARKS,
        not_measured=words.NOT_MEASURED,
        routes=list(dict.fromkeys(found.route for file in result.files for found in file.text or ())),
        greedy_measured=any(file.greedy is not None for file in result.files),
        differences=facts.differences(result),
        plots={
            "kld": plots.kld_by_step(result),
            "top1": plots.top1_by_step(result),
            "caches": [(file.dtype, plots.cache_error(file)) for file in result.files],
            "perplexity": plots.perplexity_by_bytes(result),
            "sizes": plots.size_by_role(result, sizes),
            "formats": plots.bits_where_they_pay(formats) if formats is not None else None,
        },
    )


def check_of(file: FileResult, name: CheckName) -> Check | None:
    """The check of that name, if it was asked for."""
    return next((check for check in file.checks if check.name == name), None)


def _read(name: str) -> str:
    return (resources.files("lfm2export") / "report" / "templates" / name).read_text(encoding="utf-8")
