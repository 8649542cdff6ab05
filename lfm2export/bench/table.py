"""A benchmark's result as tables for a terminal."""

from __future__ import annotations

from rich.table import Table

from lfm2export.bench.results import BenchResult, ContextResult, FileResult, Spread

NOT_MEASURED = "-"


def tables(result: BenchResult) -> list[Table]:
    """One table for each file, and the machine in its caption."""
    return [_table(result, file) for file in result.files]


def _table(result: BenchResult, file: FileResult) -> Table:
    load = f"opens in {_spread(file.load_seconds, 's', 2)}; {_megabytes(file.loaded_resident)} resident then"
    ratio = f", {file.resident_ratio:.2f} times the file" if file.resident_ratio is not None else ""
    table = Table(
        title=f"{file.file}  ({file.bytes / 1e6:.1f} MB; {load}{ratio}; {file.loop} loop)",
        caption=_caption(result),
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("tokens of context", justify="right")
    for name in ("first token, s", "prefill, tokens/s", "decode, tokens/s", "MB read a token", "of bandwidth"):
        table.add_column(name, justify="right")
    table.add_column("peak MB, anonymous", justify="right")
    for context in file.contexts:
        table.add_row(*_row(context))
    return table


def _caption(result: BenchResult) -> str:
    place = "" if result.runtime == "python" else f"{result.runtime}, {result.device}; "
    versions = "" if not place else "; " + ", ".join(f"{name} {version}" for name, version in result.versions.items())
    reads = "" if result.read_bandwidth is None else f"memory reads {result.read_bandwidth / 1e9:.1f} GB/s; "
    spread = f"median (lowest to highest) of {result.repeats}"
    return f"{place}{result.machine}; {result.threads} threads; {reads}{spread}{versions}"


def _row(context: ContextResult) -> tuple[str, ...]:
    if context.skipped is not None:
        return (f"{context.context:,}", *[NOT_MEASURED] * 5, context.skipped)
    return (
        f"{context.context:,}",
        _spread(context.first_token_seconds, "", 3),
        _spread(context.prefill_rate, "", 1),
        _spread(context.decode_rate, "", 1),
        _megabytes(context.bytes_per_token, ""),
        NOT_MEASURED if context.bandwidth_share is None else f"{context.bandwidth_share:.0%}",
        f"{_megabytes(context.peak_resident, '')}, {_megabytes(context.peak_anonymous, '')}",
    )


def _spread(found: Spread | None, unit: str, digits: int) -> str:
    if found is None:
        return NOT_MEASURED
    end = f" {unit}" if unit else ""
    return f"{found.median:.{digits}f}{end} ({found.low:.{digits}f} to {found.high:.{digits}f})"


def _megabytes(size: int | None, unit: str = " MB") -> str:
    return NOT_MEASURED if size is None else f"{size / 1e6:,.1f}{unit}"
