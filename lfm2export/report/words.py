"""Figures as words. What was not measured says so, and is never 0."""

from __future__ import annotations

import math

from lfm2export.measures import Mean
from lfm2export.verify.figures import CheckName, Verdict

NOT_MEASURED = "not measured"

VERDICTS = {Verdict.PASSED: "passed", Verdict.FAILED: "FAILED", Verdict.NOT_MEASURED: NOT_MEASURED}

#: What each check compares, in a few words for people.
CHECKS = {
    CheckName.WEIGHTS: "every stored weight against the source",
    CheckName.ARITHMETIC: "the graph in float32 against PyTorch on the same weights, step by step",
    CheckName.ROUNDING: "products of rounded activations against a model of them, token by token",
    CheckName.CACHES: "int8 keys and values against a model of them, and their scales measured again",
    CheckName.FILE: "the file as shipped against PyTorch on the source, step by step",
    CheckName.NORMS: "the same with a residual stream so faint that the eps of every norm counts",
    CheckName.CHUNKS: "prefill whole, in chunks, token by token",
    CheckName.PADDING: "padded rows of a batch against the rows alone",
    CheckName.TURNS: "a second turn on a kept cache against the conversation at once",
    CheckName.DRAFTS: "several tokens a step, the last of them taken back, against token by token",
    CheckName.LONG: "a long prompt",
    CheckName.GREEDY: "free-running greedy generation",
    CheckName.TEXT: "KLD and perplexity over text",
}


def figure(value: float | None) -> str:
    """Three significant digits; "infinite" where the artifact gave values that are not finite."""
    if value is None:
        return NOT_MEASURED
    if not math.isfinite(value):
        return "infinite"
    if value == 0:
        return "0"
    if abs(value) < 1e-3 or abs(value) >= 1e6:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def perplexity(value: float | None) -> str:
    """Four significant digits: files differ in the fourth."""
    return figure(value) if value is None or not 1 <= value < 1000 else f"{value:.4g}"


def share(value: float | None) -> str:
    """0.5 is "50.0 %". Only what is all is 100 %."""
    if value is None:
        return NOT_MEASURED
    percent = 100 * value
    return "100 %" if value == 1 else f"{min(percent, 99.99):.2f} %" if percent > 99.9 else f"{percent:.1f} %"


def mean(value: Mean | None) -> str:
    """Mean ± standard error."""
    if value is None or value.mean is None:
        return NOT_MEASURED
    return figure(value.mean) + (f" ± {figure(value.standard_error)}" if value.standard_error is not None else "")


def megabytes(count: int | None) -> str:
    return NOT_MEASURED if count is None else f"{count / 1e6:,.2f} MB" if count < 1e8 else f"{count / 1e6:,.1f} MB"


def seconds(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.1f} s" if value < 100 else f"{value:,.0f} s"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def visible(text: str) -> str:
    """`text` in one line: what cannot be printed becomes its escape, such as \\x1b."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(text: str) -> str:
    """Decoded text with line ends and outer blanks made visible."""
    text = visible(text.replace("\n", "⏎").replace("\t", "⇥"))
    inner = text.strip(" ")
    if not inner:
        return "␣" * len(text) or "(nothing)"
    head, tail = len(text) - len(text.lstrip(" ")), len(text) - len(text.rstrip(" "))
    return "␣" * head + inner + "␣" * tail
