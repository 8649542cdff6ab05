"""From records to figures: medians of each contender, ratios within a round, and what was aimed at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.speed.rounds import DISTURBED, Record
from lfm2export.bench.results import Spread, spread

Metric = Literal["prefill", "decode"]
METRICS: tuple[Metric, ...] = ("prefill", "decode")


@dataclass(frozen=True)
class Target:
    """Our rate over a peer's, at least. contexts: where it is asked for. ours: of that contender; None: of any that has
    none of its own."""

    peer: str
    metric: Metric
    at_least: float
    contexts: tuple[int, ...]
    ours: str | None = None


SHORT, LONG = (128, 512), (4096,)
TARGETS = (
    Target("llama-Q4_K_M", "prefill", 2.2, SHORT + LONG, "ours-q8"),
    Target("ours-q8-blocks", "prefill", 2.2, SHORT + LONG, "ours-q8"),
    Target("ours-q8-blocks", "decode", 1.2, SHORT + LONG, "ours-q8"),
    Target("ours", "decode", 1.0, SHORT + LONG, "ours-q8"),
    Target("wasm-q4", "decode", 13.0, SHORT),
    Target("llama-Q4_K_M", "decode", 1.3, SHORT),
    Target("llama-Q4_K_M", "decode", 1.5, LONG),
    Target("llama-Q4_K_M", "prefill", 1.15, SHORT + LONG),
    *(Target(peer, "decode", 1.2, SHORT + LONG) for peer in ("genai-rtn", "genai-vendor", "genai-mixed")),
    *(Target(peer, "prefill", 1.7, SHORT + LONG) for peer in ("genai-rtn", "genai-vendor", "genai-mixed")),
)


def target(ours: str, peer: str, metric: Metric, context: int) -> float | None:
    """What is aimed at there, or None."""
    found = [t for t in TARGETS if (t.peer, t.metric) == (peer, metric) and context in t.contexts]
    own = [t.at_least for t in found if t.ours == ours]
    return next(iter(own + [t.at_least for t in found if t.ours is None]), None)


def rates(records: Sequence[Record], contender: str, context: int, metric: Metric) -> dict[int, float]:
    """Tokens a second by round; disturbed rounds count only where every round was."""
    found, calm = {}, set()
    for record in records:
        for run in record.runs:
            if (record.contender, run.context) == (contender, context):
                prefill, decode = context / run.first_token_seconds, run.decoded / run.decode_seconds
                found[record.round] = prefill if metric == "prefill" else decode
                calm |= {record.round} if (record.others or 0.0) <= DISTURBED else set()
    return {number: value for number, value in found.items() if number in calm or not calm}


def rate(records: Sequence[Record], contender: str, context: int, metric: Metric) -> Spread | None:
    """Tokens a second over the rounds; None where it was not measured."""
    return _spread(list(rates(records, contender, context, metric).values()))


def ratio(records: Sequence[Record], ours: str, peer: str, context: int, metric: Metric) -> Spread | None:
    """Our rate over the peer's, round by round."""
    mine, theirs = rates(records, ours, context, metric), rates(records, peer, context, metric)
    return _spread([mine[number] / theirs[number] for number in mine if number in theirs])


def load_seconds(records: Sequence[Record], contender: str) -> Spread | None:
    return _spread([record.loaded.seconds for record in records if record.contender == contender])


def loaded_resident(records: Sequence[Record], contender: str) -> Spread | None:
    return _sizes(records, contender, lambda record: record.loaded.loaded_resident)


def peak(records: Sequence[Record], contender: str, kind: Literal["resident", "anonymous"]) -> Spread | None:
    """Peak memory of the process over all its contexts, in bytes."""
    if kind == "resident":
        return _sizes(records, contender, lambda record: record.runs[-1].peak_resident)
    return _sizes(records, contender, lambda record: record.runs[-1].peak_anonymous)


def _sizes(records: Sequence[Record], contender: str, size: Callable[[Record], int | None]) -> Spread | None:
    sizes = [size(record) for record in records if record.contender == contender]
    return _spread([float(found) for found in sizes if found is not None])


def _spread(values: Sequence[float]) -> Spread | None:
    return spread(values) if values else None
