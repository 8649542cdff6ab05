"""A size asked for, and the formats chosen for it.

The matrices' own bytes are what a choice changes; what else a file holds (norms, kernels, the graph, padding between
tensors) hardly depends on it, but does. So the choice is made for what is left, the file that follows is laid out, and
what it has too much is taken off until it fits.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lfm2export.calibrate.text import CalibrationText
from lfm2export.checkpoint import Checkpoint
from lfm2export.errors import Lfm2ExportError
from lfm2export.matrices import Matrix, matrices
from lfm2export.progress import Progress, silent
from lfm2export.recipes import TABLES, Chosen, Options, Target
from lfm2export.sensitivity import Rated, Sensitivity, measure_sensitivity, sequences_for, tokens_for
from lfm2export.sensitivity.choice import Option, front
from lfm2export.sensitivity.formats import candidates, stored_bytes
from lfm2export.spec import ModelSpec
from lfm2export.weights import BlockFormat, WeightSource


@dataclass(frozen=True)
class Selection:
    """The format chosen for every matrix, in the model's order, with what it costs; `bytes` of the whole file.

    reference: the same matrix in the 4-bit format that was measured. text, text_sha256, tokens: what was measured on.
    """

    matrices: tuple[Matrix, ...]
    rated: tuple[Rated, ...]
    reference: tuple[Rated, ...]
    bytes: int
    target: Target
    text: str
    tokens: int
    text_sha256: str | None = None

    @property
    def chosen(self) -> Chosen:
        return {matrix.parts: rated.format for matrix, rated in zip(self.matrices, self.rated, strict=True)}

    @property
    def kld(self) -> float:
        """What the formats are predicted to cost together, nats a token."""
        return sum(rated.kld for rated in self.rated)

    def summary(self) -> str:
        """One line: how many matrices got how many bits, and what they are predicted to cost."""
        counts = Counter(rated.format.bits for rated in self.rated)
        taken = ", ".join(f"{counts[bits]} matrices in {bits} bits" for bits in (4, 8) if counts[bits])
        return f"formats by matrix: {taken}; predicted KLD {self.kld:.2g}, from {self.tokens} tokens ({self.text})"

    def described(self) -> dict[str, Any]:
        """As JSON values, for build.json."""
        rows = zip(self.matrices, self.rated, self.reference, strict=True)
        return {
            "target": {"value": self.target.value, "unit": self.target.unit},
            "text": self.text,
            "text_sha256": self.text_sha256,
            "tokens": self.tokens,
            "predicted_kld": float(f"{self.kld:.3e}"),
            "matrices": [
                {
                    "name": matrix.name,
                    "parameters": matrix.rows * matrix.columns,
                    "bits": rated.format.bits,
                    "block_size": rated.format.block_size,
                    "symmetric": rated.format.symmetric,
                    "bytes": rated.bytes,
                    "kld": rated.kld,
                    "kld_4_bit": reference.kld,
                }
                for matrix, rated, reference in rows
            ],
        }


def select_formats(
    checkpoint: Checkpoint,
    source: WeightSource,
    text: CalibrationText,
    options: Options,
    folder: Path,
    file_bytes: Callable[[Chosen], int],
    *,
    threads: int,
    progress: Progress = silent,
) -> Selection:
    """Measure the model on a part of `text` and choose formats for `options.target`.

    Args:
        source: what the file is written from.
        folder: an empty one, the caller's to remove.
        file_bytes: of the file that has these formats, everything counted.

    Raises:
        Lfm2ExportError: no choice is so small, or so large.
        TensorError, SourceError: the checkpoint cannot be read, or holds NaN or Inf.
    """
    assert options.target is not None
    parameters = checkpoint.spec.num_parameters
    sequences = sequences_for(text.sequences, tokens_for(parameters))
    sensitivity = measure_sensitivity(
        checkpoint,
        source,
        sequences,
        text.name,
        folder,
        quantizer=options.quantizer,
        threads=threads,
        progress=progress,
    )
    found = select(sensitivity, options.target, parameters, options, file_bytes)
    return replace(found, text_sha256=text.sha256)


def check_target(spec: ModelSpec, options: Options, file_bytes: Callable[[Chosen], int]) -> None:
    """That formats for `options.target` may be found, before the model is measured.

    Raises:
        Lfm2ExportError: every matrix in the smallest format is too much, or in the largest too little.
    """
    assert options.target is not None
    sizes = {matrix: sorted(_formats(matrix, options), key=partial(stored_bytes, matrix)) for matrix in matrices(spec)}
    least = file_bytes({matrix.parts: formats[0] for matrix, formats in sizes.items()})
    most = file_bytes({matrix.parts: formats[-1] for matrix, formats in sizes.items()})
    _check_between(options.target, spec.num_parameters, least, most)


def _formats(matrix: Matrix, options: Options) -> list[BlockFormat]:
    """What `matrix` may be stored in and the lookup can read."""
    return [format for format in candidates(options.quantizer) if _readable(matrix, format, options)]


def select(
    sensitivity: Sensitivity, target: Target, parameters: int, options: Options, file_bytes: Callable[[Chosen], int]
) -> Selection:
    """Formats of least divergence for a file of at most `target`.

    file_bytes: of the file that has these formats, everything counted.

    Raises:
        Lfm2ExportError: no choice is so small, or so large; the message says what is possible.
    """
    rated = [_allowed(matrix, sensitivity.rated[matrix.parts], options) for matrix in sensitivity.matrices]
    found = front([[Option(one.bytes, one.kld) for one in group] for group in rated])

    def choice(limit: int) -> tuple[list[Rated], int]:
        taken = [group[number] for group, number in zip(rated, found.best(limit), strict=True)]
        return taken, file_bytes({m.parts: r.format for m, r in zip(sensitivity.matrices, taken, strict=True)})

    limit = target.limit(parameters)
    (_, least), (_, greatest) = choice(found.least), choice(found.greatest)
    _check_between(target, parameters, least, greatest)
    room = max(found.least, limit - (least - found.least))
    taken, size = choice(room)
    while size > limit:
        room = max(found.least, room - (size - limit))
        taken, size = choice(room)
    reference = [next(one for one in sensitivity.rated[m.parts] if one.measured) for m in sensitivity.matrices]
    matrices = sensitivity.matrices
    return Selection(matrices, tuple(taken), tuple(reference), size, target, sensitivity.text, sensitivity.tokens)


def _check_between(target: Target, parameters: int, least: int, greatest: int) -> None:
    limit = target.limit(parameters)
    if not least <= limit <= greatest:
        asked = "less than any choice takes" if limit < least else "more than the best choice takes"
        low, high = target.shown(least, parameters, math.ceil), target.shown(greatest, parameters, math.floor)
        raise Lfm2ExportError(
            f"the target of {target.value:g} {target.unit} is {asked}: possible are {low} to {high} {target.unit}; "
            "ask for one between"
        )


def _allowed(matrix: Matrix, rated: Sequence[Rated], options: Options) -> list[Rated]:
    return [one for one in rated if _readable(matrix, one.format, options)]


def _readable(matrix: Matrix, format: BlockFormat, options: Options) -> bool:
    """Whether the lookup can read `matrix`."""
    if options.lookup == "portable" or matrix.parts[0] not in TABLES:
        return True
    return format.symmetric or format.bits == 8
