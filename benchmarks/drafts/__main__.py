"""`python -m benchmarks.drafts FOLDER --name LFM2-350M --dtype q4 --units pieces`, in the root of the repository.

Measures one file of the artifact FOLDER, stores the run in results/drafts.json and writes results/drafts.md. A folder
of random weights (`lfm2-export synth`) is given its answers; with `--units own` the model answers itself.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from benchmarks.drafts import document
from benchmarks.drafts.measure import measure, step_costs
from benchmarks.drafts.tasks import KINDS, encoders, tasks
from benchmarks.peers.locate import ROOT
from lfm2export.bench.machine import machine
from lfm2export.errors import Lfm2ExportError
from lfm2export.runtime import OnnxModel
from lfm2export.text.tokenizer import ChatTokenizer

RESULTS = ROOT / "benchmarks" / "results"

#: Tokens of an answer that the model writes itself, and the most of one that it is given.
OWN_ANSWER, LONGEST = 200, 240


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.drafts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help="none: drafts.md again, from what is stored")
    parser.add_argument("--name", default="LFM2-350M", help="what the table calls the model")
    parser.add_argument("--dtype", default="q4")
    parser.add_argument("--units", choices=("pieces", "words", "own"), default="pieces")
    parser.add_argument("--kind", action="append", choices=KINDS, help="default all; others that are stored stay")
    parser.add_argument("--task", action="append", help="by name; default all of the kind")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    stored = options.results / "drafts.json"
    try:
        for run in _runs(options) if options.folder is not None else ():
            document.add(stored, run)  # task by task: what was measured stays where the rest is cut off
        runs = document.read(stored)
    except Lfm2ExportError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    text = document.render(runs)
    (options.results / "drafts.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def _runs(options: argparse.Namespace) -> Iterator[document.Run]:
    """One file, a task at a time."""
    model = OnnxModel(options.folder, options.dtype, threads=options.threads)
    head = document.Run(
        model=options.name,
        dtype=options.dtype,
        units=options.units,
        machine=machine(),
        threads=options.threads,
        versions={name: metadata.version(name) for name in ("lfm2export", "onnxruntime")},
        costs={str(width): seconds for width, seconds in step_costs(model).items()},
        rows=(),
    )
    tokenizer = ChatTokenizer(options.folder) if options.units == "own" else None
    known = encoders()
    for task in tasks():
        if task.kind not in (options.kind or KINDS) or task.name not in (options.task or [task.name]):
            continue
        if tokenizer is not None:
            prompt, answer = tokenizer.encode(task.prompt), None
        else:
            prompt, answer = (known[options.units](text) for text in (task.prompt, task.answer))
        given = OWN_ANSWER if answer is None else answer[:LONGEST]
        row = measure(model, task.name, task.kind, prompt, given, options.rounds)
        print(f"{task.name:<20} {row.ratio:.2f}", file=sys.stderr, flush=True)
        yield replace(head, rows=(row,))


if __name__ == "__main__":
    sys.exit(main())
