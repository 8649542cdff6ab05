"""results/speed.md: figures and ratios of every stored run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.speed import figures
from benchmarks.speed.contenders import CONTENDERS, Contender
from benchmarks.speed.store import Measured
from lfm2export.bench.results import Spread

NOT_MEASURED = "-"

#: What q8 is compared with of our own files.
Q8, BESIDE_Q8 = "ours-q8", ("ours-q8-blocks", "ours")

HEAD = """# Speed beside the peers

Made by `python -m benchmarks.speed SIZE`; do not edit. Random weights of the released shapes. Tokens a second: median
(lowest to highest) over rounds; every measurement is a new process, contenders take turns. Ratios are taken within a
round. onnxruntime-genai runs its builder's artifact in its own generator with one buffer as past and present. llama.cpp
runs at its defaults: files mapped, ubatch 512, float16 caches, flash attention as it decides (it does); only the last
token of a prompt asks for logits. Node and Chromium run Transformers.js, whose load is with reading the files; memory
there is of Node, or of the page's process. Everybody chooses tokens greedily. MB x decode is the file's bytes times the
decode rate at the shortest context: what memory has to give at least, beside what the read test gets.
"""


def render(stored: Mapping[str, Sequence[Measured]]) -> str:
    """The document, from size -> its runs."""
    parts = [HEAD]
    for size, runs in stored.items():
        for run in runs:
            parts += [_title(size, run), _figures(run), _ratios(run)]
    return "\n".join(parts)


def _title(size: str, run: Measured) -> str:
    contexts = ", ".join(f"{context:,}" for context in run.contexts)
    rounds = len({record.round for record in run.records})
    versions = ", ".join(f"{name} {version}" for name, version in run.head.versions.items())
    others = [record.others for record in run.records if record.others is not None]
    disturbed = f"; other processes took at most {max(others):.0%} of the cores" if others else ""
    return (
        f"## LFM2-{size}, context {contexts}\n\n{run.head.machine}; {run.head.threads} threads; memory reads "
        f"{run.head.read_bandwidth / 1e9:.0f} GB/s; {rounds} rounds{disturbed}. {versions}.\n"
    )


def _figures(run: Measured) -> str:
    columns = ["", "MB", "opens in, s", "resident then, MB", "peak, MB", "MB x decode, GB/s"]
    columns += [f"{metric} {context:,}" for context in run.contexts for metric in figures.METRICS]
    rows = []
    for contender in _contenders(run):
        name = contender.name
        row = [
            contender.label,
            f"{run.head.sizes[name] / 1e6:.0f}",
            _show(figures.load_seconds(run.records, name), "{:.2f}"),
            _show(figures.loaded_resident(run.records, name), "{:.0f}", 1e-6, whole=False),
            _show(figures.peak(run.records, name, "resident"), "{:.0f}", 1e-6, whole=False),
            _show(
                figures.rate(run.records, name, run.contexts[0], "decode"),
                "{:.1f}",
                run.head.sizes[name] / 1e9,
                whole=False,
            ),
        ]
        row += [
            _show(figures.rate(run.records, name, context, metric), "{:.1f}")
            for context in run.contexts
            for metric in figures.METRICS
        ]
        rows.append(row)
    return _table(columns, rows)


def _ratios(run: Measured) -> str:
    """Ours beside the peers, our q8 beside our others; in Node and on wasm, the others beside q4 there."""
    present = _contenders(run)
    ours, peers = ([c for c in present if c.kind in kinds] for kinds in (("ours",), ("genai", "llama")))
    compared = [
        (ours, peers),
        ([c for c in ours if c.name == Q8], [c for c in ours if c.name in BESIDE_Q8]),
        *([_split(present, kind, f"{kind}-q4") for kind in ("node", "wasm")]),
    ]
    return "\n".join(_compared(run, rows, bases) for rows, bases in compared if rows and bases)


def _split(present: Sequence[Contender], kind: str, base: str) -> tuple[list[Contender], list[Contender]]:
    """Those of the kind but `base`, and `base`."""
    found = [c for c in present if c.kind == kind]
    return [c for c in found if c.name != base], [c for c in found if c.name == base]


def _compared(run: Measured, rows_of: Iterable[Contender], peers: Sequence[Contender]) -> str:
    columns = ["times as fast as", *(peer.label for peer in peers)]
    rows = []
    for ours in rows_of:
        for context in run.contexts:
            for metric in figures.METRICS:
                row = [f"{ours.label}: {metric} {context:,}"]
                for peer in peers:
                    found = figures.ratio(run.records, ours.name, peer.name, context, metric)
                    aim = figures.target(ours.name, peer.name, metric, context)
                    row.append(_show(found, "{:.2f}") + ("" if aim is None or found is None else _verdict(found, aim)))
                rows.append(row)
    return _table(columns, rows)


def _verdict(found: Spread, aim: float) -> str:
    return f", aim {aim:.2f} " + ("reached" if found.median >= aim else "missed")


def _contenders(run: Measured) -> list[Contender]:
    return [contender for contender in CONTENDERS if contender.name in run.head.sizes]


def _show(found: Spread | None, form: str, factor: float = 1.0, *, whole: bool = True) -> str:
    if found is None:
        return NOT_MEASURED
    median, low, high = (form.format(value * factor) for value in (found.median, found.low, found.high))
    return f"{median} ({low} to {high})" if whole else median


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
