"""What a model file loses over text: as shipped, by both routes, and by its weights alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from lfm2export.progress import Progress
from lfm2export.reference.available import give_back
from lfm2export.runtime import OnnxModel
from lfm2export.verify import text, variants
from lfm2export.verify.expected import ExpectedChunk
from lfm2export.verify.figures import Against, TextMeasures
from lfm2export.verify.nibbles import split_bytes

PREFILL, DECODE, ALONE = "prefill", "decode", "prefill, weights alone"


def text_measures(
    chunks: Sequence[ExpectedChunk], folder: Path, path: Path, threads: int | None, progress: Progress
) -> list[TextMeasures]:
    """The file at `path` on `chunks`: by prefill, where every position's logits can be had, and by decode.

    One session at a time.
    """
    found = []
    every = variants.all_positions(variants.open_graph(path, folder))
    if every is not None:
        model = OnnxModel(folder, file=path, graph=every.SerializeToString(), threads=threads)
        found.append(text.measure_text(text.by_prefill(model), chunks, PREFILL, progress))
        del model
        give_back()
    model = OnnxModel(folder, file=path, threads=threads)
    return [*found, text.measure_text(text.by_decode(model), chunks, DECODE, progress)]


def weights_alone(
    chunks: Sequence[ExpectedChunk],
    folder: Path,
    path: Path,
    model: onnx.ModelProto,
    threads: int | None,
    progress: Progress,
) -> TextMeasures | None:
    """The graph `model` of the file at `path` without rounding of activations, in float32, by prefill; None where the
    logits of every position cannot be had.
    """
    every = variants.all_positions(variants.exact_copy(model))
    if every is None:
        return None
    given = split_bytes(every.graph, path.parent)
    graph = every.SerializeToString()
    exact = OnnxModel(folder, file=path, graph=graph, given=given, threads=threads, optimization="none")
    return text.measure_text(text.by_prefill(exact), chunks, ALONE, progress)


def compared(
    mine: Sequence[TextMeasures] | None, against: Mapping[str, Sequence[TextMeasures]] | None, dtype: str, other: str
) -> tuple[Against, ...] | None:
    """Beside the other artifact's file of the same dtype, else beside its first."""
    if not mine or not against:
        return None
    chosen = dtype if dtype in against else next(iter(against))
    pairs = [(a, b) for a in mine for b in against[chosen] if a.route == b.route]
    return tuple(text.compare_text(a, b, other, chosen) for a, b in pairs)
