"""`python -m benchmarks.quality`, in the root of the repository: quantizers side by side on one text.

Every file is made anew and scored on the same chunks by prefill, by cached decode, and by its weights alone. Peers
need their environments (benchmarks/README.md); a row that cannot be run says so. Writes OUT.json,
OUT.md and OUT.svg.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.quality.methods import BASELINE, METHODS, TARGETS, Method
from benchmarks.quality.plot import draw
from benchmarks.quality.results import Results, read_results, write_results
from benchmarks.quality.table import markdown
from lfm2export.console import progress_on_stderr
from lfm2export.errors import Lfm2ExportError
from lfm2export.hub import shipped_folder

RESULTS = Path(__file__).resolve().parent.parent / "results"

#: Standard errors of ratios are then 1 to 2 %.
CHUNKS = 24


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, nargs="?", help="a checkpoint folder; default the shipped model")
    parser.add_argument("--text", type=Path, help="its held-out text, perhaps .xz; default the shipped model's")
    parser.add_argument("--chunks", type=int, default=CHUNKS, help="chunks of 512 tokens (default %(default)s)")
    parser.add_argument(
        "--only", nargs="+", metavar="WORD", help="rows of these names, or whose names hold these, and the baseline"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "quality-shipped", help="where to write, without suffix")
    parser.add_argument("--reuse", action="store_true", help="keep figures in OUT.json of files with the same bytes")
    parser.add_argument("--render", action="store_true", help="measure nothing: table and plot again from OUT.json")
    options = parser.parse_args(arguments)
    document = options.out.with_suffix(".json")
    try:
        if options.render:
            return finish(read_results(document), options.out)
        from benchmarks.quality.run import run  # torch takes seconds to import

        options.out.parent.mkdir(parents=True, exist_ok=True)
        known = read_results(document) if options.reuse and document.is_file() else None
        with progress_on_stderr() as progress:
            found = run(
                options.source or shipped_folder(),
                chosen(options.only),
                text=options.text,
                chunks=options.chunks,
                known=known,
                save=lambda results: write_results(results, document),
                progress=progress,
            )
        if options.source is None:
            found = replace(found, checkpoint="the shipped model")
        write_results(found, document)
        return finish(found, options.out)
    except (Lfm2ExportError, ValueError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2


def chosen(words: list[str] | None) -> list[Method]:
    """All rows, or the baseline and those that `words` name: each the name of one row, or a part of some."""
    names = {method.name for method in METHODS}

    def named(name: str) -> bool:
        return words is None or name == BASELINE or any(w == name or (w in name and w not in names) for w in words)

    return [method for method in METHODS if named(method.name)]


def finish(results: Results, out: Path) -> int:
    """Write table and plot beside the figures, and print the table."""
    text = markdown(results, TARGETS)
    out.with_suffix(".md").write_text(text, encoding="utf-8")
    draw(results, out.with_suffix(".svg"))
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
