"""Calibration: what 4-bit matrices are made of when the inputs that they will see are known.

Layer by layer (`layers`), each matrix is quantized in several ways for its own inputs and keeps what is best on held-out
ones (`matrix`); what was decided lies on disk (`store`) and is what the files are then written from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lfm2export.calibrate.activations import Scratch, Sequences, workers
from lfm2export.calibrate.layers import Stream
from lfm2export.calibrate.matrix import Choice, quantize_matrix
from lfm2export.calibrate.store import Store
from lfm2export.checkpoint import EMBEDDING, Checkpoint
from lfm2export.progress import Progress, silent
from lfm2export.quant import dequantize, quantize
from lfm2export.reference.stream import StreamReference
from lfm2export.reference.weights import SourceWeights
from lfm2export.weights import BlockFormat

__all__ = ["Calibrated", "Choice", "Store", "calibrate"]

#: The format of a matrix, by the source tensors stacked in it; None where it stays float.
FormatOf = Callable[[tuple[str, ...]], BlockFormat | None]


@dataclass(frozen=True)
class Calibrated:
    """store: what the files are written from. choices: one per matrix, in the model's order."""

    store: Store
    choices: tuple[Choice, ...]


def calibrate(
    checkpoint: Checkpoint,
    format_of: FormatOf,
    tokens: Sequence[Sequence[int]],
    folder: Path,
    *,
    threads: int,
    progress: Progress = silent,
) -> Calibrated:
    """Quantize every matrix of the layers for the inputs that `tokens`, sequences of at most 512, make it see.

    Args:
        format_of: also of the table, whose rounding the inputs have seen.
        folder: an empty one, the caller's to remove; it takes up to 16 bytes per token and hidden feature, 8 per token
            and feature of the FFN, and 8 per entry of its second moments. Memory is bounded by one layer.

    Raises:
        TensorError, SourceError: the checkpoint cannot be read, or holds NaN or Inf.
    """
    store = Store(checkpoint, folder)
    weights = SourceWeights(checkpoint, _rounded_table(checkpoint, format_of))
    reference = StreamReference(weights)
    scratch, sequences = Scratch(folder), Sequences.split(tokens)
    layers = checkpoint.spec.num_hidden_layers
    choices: list[Choice] = []
    with workers(threads) as pool:
        stream = Stream(reference, sequences, scratch, pool)
        for layer in range(layers):
            stream.enter(layer)
            former = None
            for index, linear in enumerate(stream.linears):
                progress("calibrate", 4 * layer + index, 4 * layers, "matrices")
                former = stream.inputs(index, former)
                parts = linear.weights()
                format = format_of(tuple(parts))
                if format is None:
                    continue
                found = quantize_matrix(parts, format, former, sequences.fitted_rows, scratch, pool)
                choices.append(found.choice)
                for name, blocks in found.blocks.items():
                    store.put_blocks(name, format, blocks)
                    linear.put(name, dequantize(blocks, format, former.shape[1]))
            assert former is not None
            stream.finish(former)
        progress("calibrate", 4 * layers, 4 * layers, "matrices")
    return Calibrated(store, tuple(choices))


def _rounded_table(checkpoint: Checkpoint, format_of: FormatOf):  # type: ignore[no-untyped-def]
    """The embedding as files of that format hold it; any other tensor as it is."""
    format = format_of((EMBEDDING,))
    columns = checkpoint.spec.hidden_size

    def override(name, start, stop):  # type: ignore[no-untyped-def]
        if name != EMBEDDING or format is None:
            return None
        return dequantize(quantize(checkpoint.rows(name, start, stop), format), format, columns)

    return override
