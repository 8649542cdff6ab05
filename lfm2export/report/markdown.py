"""parity.md, for the summary of a CI job: verdict first, then failures, then one table per file; the card's table."""

from __future__ import annotations

from collections.abc import Sequence

from lfm2export.report import facts, words
from lfm2export.report.consumers import ConsumerRow
from lfm2export.report.formats import FormatTable
from lfm2export.untrusted.escape import markdown, markdown_code
from lfm2export.verify.figures import RouteMeasure, Verdict
from lfm2export.verify.results import Check, FileResult, Verification

FILE = "parity.md"

#: At most so many failures of one file in the summary; parity.json has them all.
MOST_FAILURES = 10

_MARKS = {Verdict.PASSED: "✅", Verdict.FAILED: "❌", Verdict.NOT_MEASURED: "➖"}

#: Columns of the card's table, by the keys of `facts.summary`.
_CARD = {
    "text_kld": "KLD, nats",
    "text_top": "same top token",
    "perplexity": "perplexity (reference)",
    "greedy": "greedy",
}


def escape(text: str) -> str:
    """`text` as plain words in one Markdown line or cell: nothing in it is markup, a mention or a link."""
    return markdown(words.visible(text))


def token(text: str | None) -> str:
    """Decoded text as code."""
    return words.NOT_MEASURED if text is None else f"<code>{escape(words.shown(text))}</code>"


def render(result: Verification, consumers: Sequence[ConsumerRow] = (), formats: FormatTable | None = None) -> str:
    """The whole of parity.md."""
    mark = _MARKS[result.verdict]
    parts = [f"# {mark} {escape(facts.headline(result))}", escape(facts.reference_line(result))]
    if any(file.failures for file in result.files):
        parts += ["## Failures", *(_failures(file, result) for file in result.files if file.failures)]
    for file in result.files:
        parts += [f"## {escape(file.dtype)}: {words.VERDICTS[file.verdict]}", _summary(file), _checks(file)]
        parts += [_routes(file)] if file.routes else []
    parts += [_what_is_checked(), "## First differences of greedy answers", _differences(result)]
    parts += ["## Paired with another artifact", _compared(result)] if facts.compared(result) else []
    parts += ["## Bits where they pay", _formats(formats)] if formats is not None else []
    parts += ["## Consumers", _consumers(consumers)] if consumers else []
    parts += ["## Measured with", _measured_with(result)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _formats(table: FormatTable) -> str:
    header = ["matrix", "weights", "KLD in 4 bits", "a MB of it", "format", "bytes", "KLD"]
    rows = [
        [
            f"<code>{escape(row.matrix)}</code>",
            f"{row.parameters:,}",
            words.figure(row.before),
            words.figure(row.pays),
            escape(row.format),
            f"{row.bytes:,}",
            words.figure(row.kld),
        ]
        for row in table.rows
    ]
    said = escape(facts.formats_line(table))
    summary = f"<summary>Formats of {len(table.rows)} matrices</summary>"
    return f"{said}\n\n<details>{summary}\n\n{_table([header, *rows])}\n\n</details>"


def _consumers(rows: Sequence[ConsumerRow]) -> str:
    cells = [[row.consumer, row.version, row.dtype, row.device, row.verdict, row.said] for row in rows]
    header = ["consumer", "version", "file", "device", "verdict", ""]
    return _table([header, *([escape(cell) for cell in line] for line in cells)])


def render_card(result: Verification) -> str:
    """The table between the card's parity markers."""
    rows = [["dtype", "verdict", "logits, same weights", *_CARD.values()]]
    for file in result.files:
        found = {fact.key: fact.value for fact in facts.summary(file)}
        rows.append(
            [markdown_code(file.dtype), words.VERDICTS[file.verdict], found["logits"], *(found[key] for key in _CARD)]
        )
    text = f" Text: {escape(result.text.name)}, {result.text.scored:,} tokens scored." if result.text else ""
    note = (
        "Logits: largest difference of the same weights computed by the graph in float32 and by PyTorch. KLD: of the "
        "file as shipped from the source checkpoint in float32."
    )
    verdict = f"**{escape(facts.headline(result))}.** {escape(facts.reference_line(result))}"
    return f"{verdict}\n\n{_table(rows)}\n\n{note}{text}"


def _failures(file: FileResult, result: Verification) -> str:
    lines = []
    for failure in file.failures[:MOST_FAILURES]:
        where = facts.place(failure, result)
        lines.append(f"- **{escape(file.dtype)}, {failure.check}**: {escape(failure.message)}" + _where(where))
    hidden = len(file.failures) - MOST_FAILURES
    return "\n".join([*lines, f"- and {hidden} more in parity.json"] if hidden > 0 else lines)


def _where(where: str) -> str:
    return f" ({escape(where)})" if where else ""


def _summary(file: FileResult) -> str:
    return _table([["figure", "value"], *([fact.name, escape(fact.value)] for fact in facts.summary(file))])


def _checks(file: FileResult) -> str:
    return _table([["check", "verdict", "found", "time"], *(_check(check) for check in file.checks)])


def _check(check: Check) -> list[str]:
    verdict = f"{_MARKS[check.verdict]} {words.VERDICTS[check.verdict]}"
    return [check.name, verdict, escape(check.summary), words.seconds(check.seconds)]


def _routes(file: FileResult) -> str:
    rows = [["route", "against", "logits (limit)", "caches (limit)", "verdict"], *(_route(r) for r in file.routes)]
    table = _table(rows)
    return f"<details><summary>{words.plural(len(file.routes), 'other route')}</summary>\n\n{table}\n\n</details>"


def _route(route: RouteMeasure) -> list[str]:
    logits = f"{words.figure(route.max_abs_logits)} ({words.figure(route.limit_logits)})"
    caches = f"{words.figure(route.max_abs_caches)} ({words.figure(route.limit_caches)})"
    form = f"{escape(route.route)}, {route.form}"
    return [form, escape(route.against), logits, caches, words.VERDICTS[route.verdict]]


def _what_is_checked() -> str:
    rows = [["check", "what is compared"], *([name, text] for name, text in words.CHECKS.items())]
    return f"<details><summary>What each check compares</summary>\n\n{_table(rows)}\n\n</details>"


def _differences(result: Verification) -> str:
    if not any(file.greedy is not None for file in result.files):
        return f"Greedy generation: {words.NOT_MEASURED}."
    found = facts.differences(result)
    if not found:
        return "None: every answer is the reference's, token for token."
    rows = [["dtype", "prompt", "token", "before", "reference", "artifact", "gap", "kind"]]
    for item in found:
        parted = item.found
        kind = "near tie" if parted.near_tie else "**difference**"
        at = f"{parted.step + 1} of {item.length}"
        cells = [escape(item.dtype), escape(item.prompt), at, token(parted.before), token(parted.theirs)]
        rows.append([*cells, token(parted.ours), words.figure(parted.gap), kind])
    return _table(rows) + "\n\nGap: by how many logits the reference prefers its own token to the artifact's."


def _compared(result: Verification) -> str:
    rows = [["dtype", "other", "route", "KLD, other", "KLD, difference", "surprise, difference"]]
    for dtype, found in facts.compared(result):
        figures = [words.mean(found.other.kld), words.mean(found.kld), words.mean(found.nll)]
        rows.append([escape(dtype), escape(f"{found.folder}, {found.dtype}"), escape(found.route), *figures])
    note = "This file's minus the other's, nats, paired by chunk, ± standard error; below 0 this one is better."
    return f"{_table(rows)}\n\n{note}"


def _measured_with(result: Verification) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    machine = ", ".join(f"{name} {value}" for name, value in result.machine.items())
    text = "none" if result.text is None else f"{result.text.name}, {words.plural(result.text.chunks, 'chunk')}"
    lines = [
        f"lfm2export {result.tool_version}",
        versions,
        machine,
        f"reference in {result.reference.mode}",
        f"text: {text}",
    ]
    return "\n".join(f"- {escape(line)}" for line in lines if line)


def _table(rows: list[list[str]]) -> str:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *body])
