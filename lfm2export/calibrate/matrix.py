"""One matrix on the inputs that it sees: every way to quantize it is tried, and the best one on held-out inputs kept.

Letters: N rows (output features), K columns (input features), T tokens.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lfm2export.calibrate.activations import Scratch, output_error, second_moments
from lfm2export.quant import dequantize, quantize
from lfm2export.quant.blocks import cut_rows, in_blocks, take_rows
from lfm2export.quant.descent import descend, rounds_for
from lfm2export.quant.gptq import DAMPING, Factor, FactorError, factorize, quantize_gptq
from lfm2export.quant.moved import beyond
from lfm2export.quant.rounding import quantize_round
from lfm2export.quant.search import quantize_search
from lfm2export.weights import BlockFormat, QuantizedBlocks

Array = NDArray[np.float32]

Method = Literal["plain", "weighted", "gptq", "descent"]

#: Methods that move codes off the nearest ones.
MOVED: tuple[Method, ...] = ("gptq", "descent")

#: The share of worse blocks below which a matrix looks damaged rather than calibrated: twice `verify`'s.
FEW = 0.1

#: Weights of a task: 8 MB a buffer; and its most rows.
TASK_WEIGHTS, TASK_ROWS = 2 << 20, 512


@dataclass(frozen=True)
class Choice:
    """What was decided for one matrix.

    parts: the source tensors stacked in it. method: "plain" is what a build without calibration does, "weighted" the
    search weighted by the inputs' mean squares, "gptq" as `quant.gptq`, "descent" what `quant.descent` makes of that.
    before, after: squared error of the outputs on held-out inputs as a share of the outputs' squares, by "plain" and by
    the method. reason: why GPTQ was not tried.
    """

    parts: tuple[str, ...]
    format: BlockFormat
    method: Method
    before: float
    after: float
    reason: str | None = None

    def described(self) -> dict[str, Any]:
        """As JSON values, for the manifest; errors to the digits that are the same on every machine."""
        return {
            "parts": list(self.parts),
            "format": {name: value for name, value in asdict(self.format).items() if name != "quantizer"},
            "method": self.method,
            "error_before": float(f"{self.before:.4g}"),
            "error_after": float(f"{self.after:.4g}"),
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Quantized:
    """The choice, and the blocks of each part."""

    choice: Choice
    blocks: dict[str, QuantizedBlocks]


@dataclass(frozen=True)
class _Tried:
    blocks: QuantizedBlocks
    error: float


def quantize_matrix(
    parts: dict[str, Array],
    format: BlockFormat,
    inputs: Array,
    fitted: int,
    scratch: Scratch,
    pool: ThreadPoolExecutor,
    damping: float = DAMPING,
) -> Quantized:
    """The weights `parts`, each float32 [N, K], that one matrix is stacked of.

    inputs: float32 [T, K], the first `fitted` rows to fit to, the others to judge by.
    """
    columns = inputs.shape[1]
    moments = second_moments(inputs[:fitted], scratch.array("moments", (columns, columns)), pool)
    importance = np.diagonal(moments).copy()
    factor, reason = _factor(moments, damping, scratch)
    judged = inputs[fitted:]

    def attempt(task: tuple[str, int, int]) -> tuple[dict[Method, _Tried], float]:
        name, start, stop = task
        weight = parts[name][start:stop]
        found: dict[Method, QuantizedBlocks] = {"plain": quantize(weight, format)}
        found["weighted"] = keep_within(weight, format, quantize_search(weight, format, importance), found["plain"])
        if factor is not None:
            found["gptq"] = keep_within(weight, format, quantize_gptq(weight, format, factor), found["weighted"])
            if rounds := rounds_for(columns):
                refined = descend(weight, found["gptq"], format, moments, damping, rounds)
                found["descent"] = keep_within(weight, format, refined, found["gptq"])
        tried = {
            method: _Tried(blocks, output_error(weight - dequantize(blocks, format, columns), judged))
            for method, blocks in found.items()
        }
        return tried, output_error(weight, judged)

    tasks = [(name, start, stop) for name, weight in parts.items() for start, stop in _cuts(*weight.shape)]
    done = list(pool.map(attempt, tasks))
    methods = list(done[0][0])
    errors = {method: sum(tried[method].error for tried, _ in done) for method in methods}
    method = min(methods, key=lambda one: errors[one])
    total = sum(size for _, size in done) or 1.0

    def joined(one: Method) -> dict[str, QuantizedBlocks]:
        found = zip(tasks, done, strict=True)
        pieces = [(task[0], tried[one].blocks) for task, (tried, _) in found]
        return {name: _joined([blocks for part, blocks in pieces if part == name]) for name in parts}

    blocks = joined(method)
    if method == "weighted":
        blocks = _told(parts, format, blocks, joined("plain"))
    choice = Choice(tuple(parts), format, method, errors["plain"] / total, errors[method] / total, reason)
    return Quantized(choice, blocks)


def keep_within(
    weight: Array, format: BlockFormat, wanted: QuantizedBlocks, simpler: QuantizedBlocks
) -> QuantizedBlocks:
    """`wanted`, but of a row that has a block beyond what `verify` takes for moved on purpose, `simpler`."""
    rows: NDArray[np.bool_] = np.asarray(beyond(weight, wanted, format).any(axis=1))
    return take_rows(wanted, simpler, rows)


def _told(
    parts: dict[str, Array],
    format: BlockFormat,
    weighted: dict[str, QuantizedBlocks],
    plain: dict[str, QuantizedBlocks],
) -> dict[str, QuantizedBlocks]:
    """`weighted`, but `plain` in the rows of blocks that are worse than plain rounding's, where these are few.

    Codes of `weighted` are the nearest ones, so that such blocks are all that tells its matrix from one that was not
    calibrated; `verify` takes a few of them for damage.
    """
    worse = {name: _worse_than_rounding(parts[name], format, weighted[name]) for name in parts}
    if sum(int(found.sum()) for found in worse.values()) > FEW * sum(found.size for found in worse.values()):
        return weighted
    rows = {name: np.asarray(found.any(axis=1)) for name, found in worse.items()}
    return {name: take_rows(weighted[name], plain[name], rows[name]) for name in parts}


def _worse_than_rounding(weight: Array, format: BlockFormat, blocks: QuantizedBlocks) -> NDArray[np.bool_]:
    """Blocks [N, G] whose squared error exceeds that of plain rounding."""

    def error(found: QuantizedBlocks, rows: Array) -> Array:
        difference = rows - dequantize(found, format, weight.shape[1])
        squared: Array = np.square(in_blocks(difference, format.block_size)).sum(axis=2)
        return squared

    found = np.zeros(blocks.scales.shape, np.bool_)
    for start, stop in _cuts(*weight.shape):
        rows = weight[start:stop]
        found[start:stop] = error(cut_rows(blocks, start, stop), rows) > error(quantize_round(rows, format), rows)
    return found


def _factor(moments: Array, damping: float, scratch: Scratch) -> tuple[Factor | None, str | None]:
    try:
        return factorize(moments, damping, lambda shape: scratch.array("factor", shape)), None
    except FactorError as error:
        return None, str(error)


def _cuts(rows: int, columns: int) -> list[tuple[int, int]]:
    step = min(TASK_ROWS, max(16, TASK_WEIGHTS // columns))
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def _joined(pieces: list[QuantizedBlocks]) -> QuantizedBlocks:
    zeros = [piece.zero_points for piece in pieces if piece.zero_points is not None]
    return QuantizedBlocks(
        np.concatenate([piece.codes for piece in pieces]),
        np.concatenate([piece.scales for piece in pieces]),
        np.concatenate(zeros) if zeros else None,
        sum(piece.saturated for piece in pieces),
        max(piece.largest for piece in pieces),
    )
