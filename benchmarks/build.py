"""`python -m benchmarks.build`: what a build costs, beside onnxruntime-genai's builder on the same checkpoint.

    python -m benchmarks.build run 350M --case q4 --case genai-rtn --case genai-vendor
    python -m benchmarks.build run 2.6B --case q4 --case all --case verify
    python -m benchmarks.build table                                             Markdown of all that was run

Each `run` reads the checkpoint once, so that all find it in the page cache, then runs its cases one after the other,
`--rounds` times, each in a process of its own into a fresh folder, and appends one record to results/build.json. Ratios
are taken inside one record. Memory is that of the whole process tree, sampled (see `benchmarks.processes`).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.peers import genai
from benchmarks.peers.locate import ROOT, PeerError
from benchmarks.processes import Usage, measure
from lfm2export.bench.machine import machine
from lfm2export.user_cache import VARIABLE

RESULTS = ROOT / "benchmarks" / "results" / "build.json"
LIBRARIES = ("lfm2export", "numpy", "onnxruntime", "torch", "transformers")
CHECKPOINTS = ROOT / "benchmarks" / ".checkpoints"

ALL = ("fp32", "fp16", "q8", "q4", "q4f16")
#: Name of a case of ours -> options of `lfm2-export build`.
OURS: dict[str, tuple[str, ...]] = {
    "q4": ("--dtype", "q4", "--no-verify", "--no-cache"),
    "q4-again": ("--dtype", "q4", "--no-verify"),
    "q4-round": ("--dtype", "q4", "--quantizer", "round", "--no-verify", "--no-cache"),
    "all": (*(word for dtype in ALL for word in ("--dtype", dtype)), "--no-verify", "--no-cache"),
    "verify": ("--dtype", "q4", "--no-cache"),
}
#: Run once before it is measured: its graph is then in the cache.
AGAIN = "q4-again"
#: Name of a peer's case -> the builder's recipe.
PEERS: dict[str, genai.Recipe] = {"genai-rtn": "rtn", "genai-vendor": "vendor"}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.build", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True)
    run = actions.add_parser("run", help="measure, and append a record")
    run.add_argument("size", choices=("350M", "700M", "1.2B", "2.6B"))
    run.add_argument("--case", action="append", choices=(*OURS, *PEERS), help="repeatable; default q4")
    run.add_argument("--rounds", type=int, default=1)
    run.add_argument("--checkpoints", type=Path, default=CHECKPOINTS, help="folder of `lfm2-export synth` checkpoints")
    run.add_argument("--scratch", type=Path, help="where the builds go, default the system's folder for such")
    for action in (run, actions.add_parser("table", help="print the records as Markdown")):
        action.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    records = json.loads(options.results.read_text(encoding="utf-8")) if options.results.is_file() else []
    if options.action == "table":
        print(table(records))
        return 0
    try:
        record = run_cases(options.size, options.case or ["q4"], options.rounds, options.checkpoints, options.scratch)
    except PeerError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(json.dumps([*records, record], indent=1) + "\n", encoding="utf-8")
    print(table([record]))
    return 0


def run_cases(size: str, cases: list[str], rounds: int, checkpoints: Path, scratch: Path | None) -> dict[str, Any]:
    """One record: the runs of every case, round by round.

    Raises:
        PeerError: a peer, or a build of ours, failed.
    """
    source = _checkpoint(size, checkpoints)
    runs: dict[str, list[dict[str, Any]]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        for path in source.glob("*.safetensors"):
            _read(path)
        cache = Path(folder) / "cache"
        if AGAIN in cases:
            _build(source, Path(folder) / "first", OURS[AGAIN], cache)
        for _ in range(rounds):
            for case in cases:
                out = Path(folder) / case
                used = (
                    genai.build(source, out, PEERS[case]) if case in PEERS else _build(source, out, OURS[case], cache)
                )
                runs[case].append(_figures(used, out))
                shutil.rmtree(out)
                print(f"{size} {case}: {runs[case][-1]}", file=sys.stderr, flush=True)
    return {
        "size": size,
        "date": datetime.date.today().isoformat(),
        "machine": f"{machine()}, {_memory()} GiB of memory",
        "versions": {name: metadata.version(name).split("+")[0] for name in LIBRARIES},
        "runs": runs,
    }


def _memory() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def _checkpoint(size: str, folder: Path) -> Path:
    """The random checkpoint of `size`; written if it is not there, which takes no part in any figure."""
    path = folder / size
    if not path.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        _tool(["synth", size, str(path), "--quiet"])
    return path.resolve()


def _read(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 24):
            pass


def _build(source: Path, out: Path, options: tuple[str, ...], cache: Path) -> Usage:
    return _tool(["build", str(source), "-o", str(out), "--quiet", *options], {VARIABLE: str(cache)})


def _tool(arguments: list[str], variables: Mapping[str, str] | None = None) -> Usage:
    used = measure([sys.executable, "-m", "lfm2export", *arguments], cwd=ROOT, env={**os.environ, **(variables or {})})
    if used.exit_code:
        raise PeerError(f"lfm2-export {' '.join(arguments)} exited with {used.exit_code}: {used.output[-2000:]}")
    return used


def _figures(used: Usage, out: Path) -> dict[str, Any]:
    """Seconds, megabytes of 10**6 bytes, and the share of the cores that others took."""
    return {
        "seconds": round(used.seconds, 2),
        "cpu_seconds": round(used.cpu_seconds, 2),
        "others": None if used.others is None else round(used.others, 3),
        "anonymous_mb": round(used.peak_anonymous_bytes / 1e6, 1),
        "resident_mb": round(used.peak_resident_bytes / 1e6, 1),
        "folder_mb": round(sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6, 1),
    }


TIMES = ("seconds", "cpu_seconds", "others")
MEGABYTES = ("anonymous_mb", "resident_mb", "folder_mb")


def best(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The fastest round's times; the largest memory of any round."""
    fastest = min(runs, key=lambda run: run["seconds"])
    return {name: fastest[name] for name in TIMES} | {name: max(run[name] for run in runs) for name in MEGABYTES}


def table(records: list[dict[str, Any]]) -> str:
    """Markdown: one row a case, its ratios to our q4 (q4-round for plain rounding) of the same record."""
    lines = [
        "| shape | case | wall s | CPU s | busy cores | others | anonymous MB | resident MB | folder MB "
        "| time / ours | memory / ours |"
        "\n|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        figures = {case: best(runs) for case, runs in record["runs"].items()}
        for case, found in figures.items():
            ours = figures.get("q4-round" if case == "genai-rtn" and "q4-round" in figures else "q4")
            ratios = "| | |"
            if case in PEERS and ours is not None:
                ratios = (
                    f"| {found['seconds'] / ours['seconds']:.1f} | {found['anonymous_mb'] / ours['anonymous_mb']:.1f} |"
                )
            others = "" if found["others"] is None else f"{found['others']:.0%}"
            lines.append(
                f"| {record['size']} | {case} | {found['seconds']:.1f} | {found['cpu_seconds']:.1f} "
                f"| {found['cpu_seconds'] / found['seconds']:.2f} | {others} | {found['anonymous_mb']:.0f} "
                f"| {found['resident_mb']:.0f} | {found['folder_mb']:,.0f} {ratios}"
            )
    measured = {(record["date"], record["machine"], *record["versions"].items()) for record in records}
    for date, on, *versions in sorted(measured):
        lines += ["", f"{date}, {on}; {', '.join(f'{name} {version}' for name, version in versions)}"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
