"""`python -m benchmarks.quality.variants`: what calibration could do otherwise, beside what it does.

Each row quantizes the model again as `lfm2export.calibrate` does, with one thing changed, and is scored on held-out
text by its weights alone. Ratios are paired by chunk: to symmetric rounding in blocks of 32, and to the row above of
the same block size that changes nothing. What a row decides by is the calibration text's held-out part, as in a build.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.quality.make import by_pytorch
from benchmarks.quality.methods import BASELINE
from benchmarks.quality.results import Figures, ratio_of_means
from benchmarks.quality.variant_weights import NORMS, PRODUCTS, Variant, make
from lfm2export.calibrate.activations import Sequences
from lfm2export.calibrate.source import open_text
from lfm2export.checkpoint import Checkpoint, open_checkpoint
from lfm2export.console import progress_on_stderr
from lfm2export.errors import Lfm2ExportError
from lfm2export.hub import shipped_folder
from lfm2export.matrices import matrices
from lfm2export.measures import Array, Mean
from lfm2export.progress import Progress, silent
from lfm2export.quant import rounded
from lfm2export.recipes import TABLES, Calibration, Options, body_format, table_format
from lfm2export.reference import load_reference, torch_threads
from lfm2export.verify.expected import expect_text
from lfm2export.verify.prompts import make_text, open_tokenizer
from lfm2export.verify.text import measure_text

CHUNKS = 24

VARIANTS: tuple[Variant, ...] = (
    Variant("g128", 128),
    Variant("g128, folds everywhere", 128, (*NORMS, *PRODUCTS)),
    Variant("g128, folds everywhere, powers of two", 128, (*NORMS, *PRODUCTS), power_of_two=True),
    Variant("g128, folds into out_proj and w2", 128, PRODUCTS),
    Variant("g32"),
    Variant("g32, folds everywhere", folds=(*NORMS, *PRODUCTS)),
    Variant("g32, folds everywhere, powers of two", folds=(*NORMS, *PRODUCTS), power_of_two=True),
    Variant("g32, folds into out_proj and w2", folds=PRODUCTS),
    Variant("g32, damping .001", damping=0.001),
    Variant("g32, damping .03", damping=0.03),
    Variant("g32, damping .1", damping=0.1),
    Variant("g32, inputs of the float model", float_inputs=True),
    Variant("g32, every token and output alike", alike=True),
)

#: Those that change nothing.
PLAIN = ("g32", "g128")


def chosen(words: list[str] | None) -> list[Variant]:
    """All rows, or those whose name holds one of `words`, with the rows that these are paired with."""
    found = [variant for variant in VARIANTS if words is None or any(word in variant.name for word in words)]
    sizes = {variant.block_size for variant in found}
    return [one for one in VARIANTS if one in found or (one.name in PLAIN and one.block_size in sizes)]


def rounded_weights(checkpoint: Checkpoint) -> dict[str, Array]:
    """Every matrix by symmetric rounding in blocks of 32, the table in its own format: the baseline's file."""
    options = Options(quantizer="round", symmetric=True)
    body, table = body_format("q4", options), table_format("q4", options)
    assert body is not None and table is not None
    found = {}
    for name in (part for matrix in matrices(checkpoint.spec) for part in matrix.parts):
        form = table if name in TABLES else body
        rows = checkpoint.rows(name, 0, checkpoint.tensors[name].shape[0])
        found[name] = rounded(rows, form)
    return found


@dataclass(frozen=True)
class Line:
    """One row. error: of the matrices' outputs on held-out calibration text, geometric mean. taken: folds."""

    name: str
    figures: Figures
    error: float | None
    taken: Sequence[str]


def measure(
    source: Path, variants: Sequence[Variant], chunks: int, tokens: int, threads: int, progress: Progress = silent
) -> Iterator[Line]:
    """The baseline, then each variant, on the same chunks."""
    checkpoint, tokenizer = open_checkpoint(source), open_tokenizer(source)
    assert tokenizer is not None
    sequences = Sequences.split(open_text(checkpoint, Calibration(tokens=tokens))(silent).sequences)
    with torch_threads(threads):
        expected = expect_text(load_reference(source), make_text(tokenizer, checkpoint.spec, None, chunks), progress)

        def scored(weights: Mapping[str, Array]) -> Figures:
            return Figures.of(measure_text(by_pytorch(source, weights), expected, "float", progress))

        yield Line(BASELINE, scored(rounded_weights(checkpoint)), None, ())
        for variant in variants:
            with tempfile.TemporaryDirectory(prefix="variant-") as folder, torch.no_grad():
                weights, found = make(checkpoint, sequences, variant, Path(folder), threads, progress)
            error = float(np.exp(np.mean([np.log(choice.after) for choice in found.choices])))
            yield Line(variant.name, scored(weights), error, found.taken)


def markdown(lines: Sequence[Line]) -> str:
    """One table. The last ratio is to the nearest row above that changes nothing."""
    rows = [
        "| | KLD x 1000 | of symmetric rounding | of calibration as it is | error of outputs, held out | folds taken |",
        "|---|---|---|---|---|---|",
    ]
    base, plain = lines[0], lines[0]
    for line in lines:
        plain = line if line.name in PLAIN else plain
        whole, part = (ratio_of_means(line.figures.chunk_kld, one.figures.chunk_kld) for one in (base, plain))
        mean = f"{1000 * line.figures.kld.mean:.3f}" if line.figures.kld.mean is not None else "–"
        error = f"{line.error:.3e}" if line.error is not None else "–"
        rows.append(f"| {line.name} | {mean} | {_share(whole)} | {_share(part)} | {error} | {len(line.taken)} |")
    return "\n".join(rows) + "\n"


def _share(ratio: Mean) -> str:
    if ratio.mean is None:
        return "–"
    error = f" ± {100 * ratio.standard_error:.1f}" if ratio.standard_error is not None else ""
    return f"{100 * ratio.mean:.1f}{error} %"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.variants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, nargs="?", help="a checkpoint folder; default the shipped model")
    parser.add_argument("--chunks", type=int, default=CHUNKS, help="chunks of 512 tokens (default %(default)s)")
    parser.add_argument(
        "--tokens", type=int, default=Calibration().tokens, help="to calibrate on (default %(default)s)"
    )
    parser.add_argument("--only", nargs="+", metavar="WORD", help="rows whose name holds one of these")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default one a core")
    options = parser.parse_args(arguments)
    try:
        with progress_on_stderr() as progress:
            source = options.source or shipped_folder()
            found = measure(source, chosen(options.only), options.chunks, options.tokens, options.threads, progress)
            print(markdown(list(found)))
    except Lfm2ExportError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
