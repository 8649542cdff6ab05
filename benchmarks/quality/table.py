"""The results as Markdown: one table, the targets with their verdicts, and which table format pays."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.quality.methods import Target
from benchmarks.quality.results import Column, Figures, Results, Row
from lfm2export.measures import Mean

NOTHING = "–"


def markdown(results: Results, targets: Sequence[Target] = ()) -> str:
    """The whole document."""
    lines = [
        f"# Quality per byte: {results.checkpoint}",
        "",
        f"{results.parameters:,} parameters; {results.text}: {results.chunks} chunks of up to 512 tokens, "
        f"{results.positions:,} positions scored (of {results.decode_chunks} chunks by decode too), "
        f"reference perplexity {results.reference_perplexity:.2f}.",
        f"Machine: {results.machine}. "
        + ", ".join(f"{name} {version}" for name, version in results.versions.items())
        + ".",
        "",
        "KLD to transformers fp32 in nats a token, x 1000, with its standard error over chunks. File: as it runs, "
        "activations rounded as its runtime does, by prefill and by cached decode. Weights: the file's weights alone, "
        f'float32 activations. Ratio: to the row "{results.baseline}", paired by chunk.',
        "",
        "| method | MB | bits a weight | file, prefill | ratio | file, decode | ratio | weights | ratio | same top | "
        "perplexity |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(_line(results, row) for row in results.rows),
    ]
    missing = [f"- {row.name}: {row.reason}" for row in results.rows if row.reason is not None]
    if missing:
        lines += ["", "Not measured:", "", *missing]
    if targets:
        lines += ["", "| target | measured | verdict |", "|---|---|---|", *(_target(results, one) for one in targets)]
    lines += ["", "How each file was made:", "", *(f"- {row.name}: `{row.how}`" for row in results.rows)]
    return "\n".join(lines) + "\n"


def _line(results: Results, row: Row) -> str:
    bits = results.bits_per_weight(row)
    cells = [
        row.name,
        f"{row.weight_bytes / 1e6:.3f}" if row.weight_bytes is not None else NOTHING,
        f"{bits:.2f}" if bits is not None else NOTHING,
    ]
    columns: tuple[Column, ...] = ("prefill", "decode", "float")
    for column in columns:
        cells += [_kld(row.columns[column]), _mean(results.ratio(row.name, results.baseline, column))]
    shipped = row.columns["prefill"]
    cells.append(f"{100 * shipped.same_top:.2f} %" if shipped is not None else NOTHING)
    cells.append(f"{shipped.perplexity:.2f}" if shipped is not None else NOTHING)
    return "| " + " | ".join(cells) + " |"


def _kld(found: Figures | None) -> str:
    if found is None or found.kld.mean is None:
        return NOTHING
    error = f" ± {1000 * found.kld.standard_error:.3f}" if found.kld.standard_error is not None else ""
    return f"{1000 * found.kld.mean:.3f}{error}"


def _mean(found: Mean | None) -> str:
    if found is None or found.mean is None:
        return NOTHING
    if not found.standard_error:
        return f"{found.mean:.3f}"
    return f"{found.mean:.3f} ± {found.standard_error:.3f}"


def _target(results: Results, target: Target) -> str:
    found = results.ratio(target.method, target.against)
    wanted = f"{target.method}: at most {100 * target.limit:.0f} % of {target.against}"
    if found is None or found.mean is None:
        return f"| {wanted} | {NOTHING} | not measured |"
    error = f" ± {100 * found.standard_error:.1f}" if found.standard_error is not None else ""
    verdict = "held" if found.mean <= target.limit else "not held"
    return f"| {wanted} | {100 * found.mean:.1f}{error} % | {verdict} |"
