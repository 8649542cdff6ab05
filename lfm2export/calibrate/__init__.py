"""Calibration: what 4-bit matrices are made of when the inputs that they will see are known.

Layer by layer (`layers`), each matrix is quantized in several ways for its own inputs and keeps what is best on
held-out ones (`matrix`); what was decided lies on disk (`store`) and is what the files are then written from.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfm2export.calibrate.activations import Scratch, Sequences, workers
from lfm2export.calibrate.gradients import output_moments
from lfm2export.calibrate.layers import Stream
from lfm2export.calibrate.matrix import Choice, quantize_matrix
from lfm2export.calibrate.store import Store
from lfm2export.calibrate.text import CalibrationText
from lfm2export.calibrate.tuning import Tuned, tune_store
from lfm2export.checkpoint import Checkpoint
from lfm2export.progress import Progress, silent
from lfm2export.quant import dequantize, rounded
from lfm2export.quant.blocks import cut_rows
from lfm2export.recipes import TABLES
from lfm2export.reference.available import give_back
from lfm2export.reference.stream import StreamReference
from lfm2export.reference.weights import Override, SourceWeights
from lfm2export.weights import BlockFormat, QuantizedBlocks

__all__ = ["Calibrated", "Choice", "Store", "calibrate"]

#: Models of fewer parameters are run backwards too, for what they make of each matrix's outputs and to tune all scales
#: together: that takes the whole model in memory, and time that grows with it to hours.
SMALL = 100_000_000

#: The format of a matrix, by the source tensors stacked in it; None where it stays float.
FormatOf = Callable[[tuple[str, ...]], BlockFormat | None]


@dataclass(frozen=True)
class Calibrated:
    """store: what the files are written from. choices: one per matrix, in the model's order. text: name of the text.
    text_sha256: of its file; None for text of the model's own.

    tuned: what came of tuning all scales together; None where that was not tried.
    """

    store: Store
    choices: tuple[Choice, ...]
    text: str
    text_sha256: str | None
    tokens: int
    tuned: Tuned | None

    def described(self) -> dict[str, Any]:
        """As JSON values, for the manifest."""
        return {
            "text": self.text,
            "text_sha256": self.text_sha256,
            "tokens": self.tokens,
            "matrices": [choice.described() for choice in self.choices],
            "tuned": self.tuned.described() if self.tuned is not None else None,
        }

    def summary(self) -> str:
        """One line: how many matrices took which method, and what became of their outputs' error."""
        counts = Counter(choice.method for choice in self.choices)
        ratios = [choice.after / choice.before for choice in self.choices if choice.before]
        error = f"; error of their outputs {100 * math.exp(np.mean(np.log(ratios))):.0f} % of before" if ratios else ""
        taken = ", ".join(f"{count} {method}" for method, count in counts.most_common())
        tuned = ""
        if self.tuned is not None and self.tuned.kept:
            tuned = f"; tuning their scales together took KLD from {self.tuned.before:.5f} to {self.tuned.after:.5f}"
        return f"calibrated on {self.tokens} tokens ({self.text}): {taken}{error}{tuned}"


def calibrate(
    checkpoint: Checkpoint,
    format_of: FormatOf,
    text: CalibrationText,
    folder: Path,
    *,
    threads: int,
    progress: Progress = silent,
) -> Calibrated:
    """Quantize every matrix of the layers for the inputs that `text` makes it see, but for those of 8 bits.

    Args:
        format_of: also of the table, whose rounding the inputs have seen.
        folder: an empty one, the caller's to remove; it takes up to 16 bytes per token and hidden feature, 12 per token
            and feature of the FFN, and 8 per entry of its second moments; for a model below SMALL also 8 per entry of
            every matrix's outputs' moments. Memory is bounded by one layer, or by the model below SMALL.

    Raises:
        TensorError, SourceError: the checkpoint cannot be read, or holds NaN or Inf.
    """
    store = Store(checkpoint, folder)
    weights = SourceWeights(checkpoint, _rounded_table(checkpoint, format_of))
    reference = StreamReference(weights)
    scratch, sequences = Scratch(folder), Sequences.split(text.sequences)
    layers = checkpoint.spec.num_hidden_layers
    choices: list[Choice] = []
    small = checkpoint.spec.num_parameters < SMALL
    with workers(threads) as pool:
        outputs = output_moments(checkpoint, sequences, scratch, pool, progress=progress) if small else None
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
                if format.bits == 8:  # nothing to win; what follows sees the rounding that the file will have
                    for name, weight in parts.items():
                        linear.put(name, partial(_rounded, weight, format))
                    continue
                found = quantize_matrix(parts, format, former, sequences.fitted_rows, scratch, pool, outputs=outputs)
                choices.append(found.choice)
                for name, blocks in found.blocks.items():
                    store.put_blocks(name, format, blocks)
                    linear.put(name, partial(_read_back, blocks, format, former.shape[1]))
            assert former is not None
            stream.finish(former)
            give_back()
        progress("calibrate", 4 * layers, 4 * layers, "matrices")
        tuned = None
        if small:
            tuned = tune_store(store, choices, reference, sequences, pool, progress)
    return Calibrated(store, tuple(choices), text.name, text.sha256, text.tokens, tuned)


def _rounded(weight: NDArray[np.float32], format: BlockFormat, start: int, stop: int) -> NDArray[np.float32]:
    return rounded(weight[start:stop], format)


def _read_back(
    blocks: QuantizedBlocks, format: BlockFormat, columns: int, start: int, stop: int
) -> NDArray[np.float32]:
    return dequantize(cut_rows(blocks, start, stop), format, columns)


def _rounded_table(checkpoint: Checkpoint, format_of: FormatOf) -> Override:
    """The embedding and the head as files of their format hold them; any other tensor as it is."""
    formats = {name: format_of((name,)) for name in TABLES}

    def override(name: str, start: int, stop: int) -> NDArray[np.float32] | None:
        format = formats.get(name)
        if format is None:
            return None
        return rounded(checkpoint.rows(name, start, stop), format)

    return override
