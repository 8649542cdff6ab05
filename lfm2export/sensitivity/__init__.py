"""Where bits pay: what each format of each matrix costs in divergence, measured on the model, and formats chosen by it.

    forks         the model with one matrix quantized, for every matrix, beside the model itself: one pass over the file
    divergence    KL(reference || fork) at the head
    formats       the other formats' divergence from the measured one's; bytes
    choice        the least sum of divergences within so many bytes
    target        the bytes asked for, and what was chosen

The divergence of a file is taken for the sum of what its matrices cost one by one. On the shipped model, for 12 mixes
of formats (six uniform, six drawn by chance), what was measured was .95 to 1.06 times that sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lfm2export.calibrate.text import LENGTH as TEXT_LENGTH
from lfm2export.checkpoint import Checkpoint
from lfm2export.matrices import Matrix, matrices
from lfm2export.progress import Progress, silent
from lfm2export.sensitivity.forks import Fork, run_forks
from lfm2export.sensitivity.formats import candidates, measured_format, squared_errors, stored_bytes
from lfm2export.weights import BlockFormat, Quantizer, WeightSource

__all__ = ["Rated", "Sensitivity", "measure_sensitivity", "sequences_for", "text_tokens", "tokens_for"]

#: Tokens times parameters of a measurement: 1,100 tokens at 350M. Fewer than LEAST say too little, more than MOST no
#: more: of 256 / 512 / 1,024 tokens, a matrix's share of the sum is uncertain by 25 / 18 / 12 % on the shipped model,
#: where shares differ by a factor of 100.
WORK, LEAST, MOST = 4e11, 512, 4096

#: Tokens of a sequence. Many short ones say more than few long ones of as many tokens.
LENGTH = 256

#: Digits that are kept of a divergence: rounding of sums, which may differ between processors, is below them.
DIGITS = 4


@dataclass(frozen=True)
class Rated:
    """One matrix in one format: bytes, and nats a token. measured: on the model; else by squared errors."""

    format: BlockFormat
    bytes: int
    kld: float
    measured: bool


@dataclass(frozen=True)
class Sensitivity:
    """What each format of each matrix costs, in the model's order, on `tokens` tokens of the text called `text`."""

    matrices: tuple[Matrix, ...]
    rated: Mapping[tuple[str, ...], tuple[Rated, ...]]
    text: str
    tokens: int


def tokens_for(parameters: int) -> int:
    """How many tokens a model of so many parameters is measured on."""
    return round(min(max(WORK / parameters, LEAST), MOST) / LENGTH) * LENGTH


def text_tokens(parameters: int) -> int:
    """How many tokens of a text are wanted for that, of whose longer sequences the start is taken."""
    return tokens_for(parameters) * TEXT_LENGTH // LENGTH


def sequences_for(text: Sequence[Sequence[int]], tokens: int) -> tuple[tuple[int, ...], ...]:
    """About `tokens` tokens of a text's sequences, spread evenly over it, LENGTH of each."""
    count = min(len(text), max(1, tokens // LENGTH))
    return tuple(tuple(text[number * len(text) // count][:LENGTH]) for number in range(count))


def measure_sensitivity(
    checkpoint: Checkpoint,
    source: WeightSource,
    sequences: Sequence[Sequence[int]],
    text: str,
    folder: Path,
    *,
    quantizer: Quantizer = "search",
    threads: int,
    progress: Progress = silent,
) -> Sensitivity:
    """Rate every candidate format of every matrix on token `sequences` of the text called `text`.

    Args:
        source: what files are written from.
        folder: an empty one, the caller's to remove; it takes 4 bytes per matrix, token and hidden feature.

    Raises:
        TensorError, SourceError: the checkpoint cannot be read, or holds NaN or Inf.
    """
    listed = matrices(checkpoint.spec)
    forks = [Fork(m, form) for m in listed for form in dict.fromkeys(measured_format(m, b, quantizer) for b in (4, 8))]
    found = run_forks(checkpoint, source, forks, sequences, folder, threads=threads, progress=progress)
    klds = {(fork.matrix.parts, fork.format): kld for fork, kld in zip(forks, found.kld, strict=True)}
    rated = {}
    formats = candidates(quantizer)
    with ThreadPoolExecutor(threads) as pool:
        for number, matrix in enumerate(listed):
            progress("weigh formats", number, len(listed), "matrices")
            errors = squared_errors(source, matrix, formats, found.moments, pool)
            rated[matrix.parts] = tuple(_rated(matrix, form, errors, klds, quantizer) for form in formats)
    progress("weigh formats", len(listed), len(listed), "matrices")
    return Sensitivity(listed, rated, text, sum(len(one) for one in sequences))


def _rated(
    matrix: Matrix,
    format: BlockFormat,
    errors: Mapping[BlockFormat, float],
    klds: Mapping[tuple[tuple[str, ...], BlockFormat], float],
    quantizer: Quantizer,
) -> Rated:
    base = measured_format(matrix, format.bits, quantizer)
    kld = klds[matrix.parts, base] * (errors[format] / errors[base] if errors[base] else 1.0)
    return Rated(format, stored_bytes(matrix, format), float(f"{kld:.{DIGITS - 1}e}"), base == format)
