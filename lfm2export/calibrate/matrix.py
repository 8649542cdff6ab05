"""One matrix on the inputs that it sees: every way to quantize it is tried, and the best one on held-out inputs kept.

Letters: N rows (output features), K columns (input features), T tokens.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lfm2export.calibrate.activations import Scratch, output_error, second_moments
from lfm2export.calibrate.gradients import OutputMoments
from lfm2export.quant import dequantize, quantize
from lfm2export.quant.blocks import cut_rows, in_blocks, join_rows, take_rows
from lfm2export.quant.coupled import DAMPING as OUTPUT_DAMPING
from lfm2export.quant.coupled import cost, quantize_coupled
from lfm2export.quant.descent import descend, rounds_for
from lfm2export.quant.gptq import DAMPING, Factor, FactorError, factorize, quantize_gptq
from lfm2export.quant.moved import beyond
from lfm2export.quant.rounding import quantize_round
from lfm2export.quant.search import quantize_search
from lfm2export.weights import BlockFormat, QuantizedBlocks

Array = NDArray[np.float32]

Method = Literal["plain", "weighted", "gptq", "descent", "coupled"]

#: Methods that move codes off the nearest ones.
MOVED: tuple[Method, ...] = ("gptq", "descent", "coupled")

#: The share of worse blocks below which a matrix looks damaged rather than calibrated: twice `verify`'s.
FEW = 0.1

#: Weights of a task: 8 MB a buffer; and its most rows.
TASK_WEIGHTS, TASK_ROWS = 2 << 20, 512


@dataclass(frozen=True)
class Choice:
    """What was decided for one matrix.

    parts: the source tensors stacked in it. method: "plain" is what a build without calibration does, "weighted" the
    search weighted by the inputs' mean squares, "gptq" as `quant.gptq`, "descent" what `quant.descent` makes of that,
    "coupled" the same row by row as `quant.coupled`. before, after: squared error of the outputs on held-out inputs as
    a share of the outputs' squares, by "plain" and by the method; both weighed by what the model makes of tokens and
    outputs, where that is known. reason: why GPTQ was not tried.
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


def quantize_matrix(
    parts: dict[str, Array],
    format: BlockFormat,
    inputs: Array,
    fitted: int,
    scratch: Scratch,
    pool: ThreadPoolExecutor,
    damping: float = DAMPING,
    outputs: OutputMoments | None = None,
) -> Quantized:
    """The weights `parts`, each float32 [N, K], that one matrix is stacked of.

    inputs: float32 [T, K], the first `fitted` rows to fit to, the others to judge by. outputs: what the model makes of
    the matrix's outputs; None where that is not known, and every token and output counts the same.
    """
    columns = inputs.shape[1]
    if outputs is not None:
        roots = np.sqrt(outputs.weights(parts))[:, None]
        inputs = np.multiply(inputs, roots, out=scratch.array("weighed", inputs.shape))
    moments = second_moments(inputs[:fitted], scratch.array("moments", (columns, columns)), pool)
    importance = np.diagonal(moments).copy()
    factor, reason = _factor(moments, damping, scratch)
    judged = inputs[fitted:]
    rounds = rounds_for(columns)

    def attempt(task: tuple[str, int, int]) -> dict[Method, QuantizedBlocks]:
        name, start, stop = task
        weight = parts[name][start:stop]
        found: dict[Method, QuantizedBlocks] = {"plain": quantize(weight, format)}
        found["weighted"] = keep_within(weight, format, quantize_search(weight, format, importance), found["plain"])
        if factor is not None:
            found["gptq"] = keep_within(weight, format, quantize_gptq(weight, format, factor), found["weighted"])
            if rounds:
                refined = descend(weight, found["gptq"], format, moments, damping, rounds)
                found["descent"] = keep_within(weight, format, refined, found["gptq"])
        return found

    tasks = [(name, start, stop) for name, weight in parts.items() for start, stop in _cuts(*weight.shape)]
    done = list(zip(tasks, pool.map(attempt, tasks), strict=True))
    tried: dict[Method, dict[str, QuantizedBlocks]] = {
        method: {name: join_rows([found[method] for task, found in done if task[0] == name]) for name in parts}
        for method in done[0][1]
    }
    done.clear()
    if factor is not None and outputs is not None:
        one_sided = partial(_one_sided, format=format, factor=factor, moments=moments, damping=damping, rounds=rounds)
        best = tried["descent" if rounds else "gptq"]

        def coupled(name: str) -> QuantizedBlocks:
            try:
                rows = factorize(outputs.fitted(name), OUTPUT_DAMPING)
            except FactorError:  # an output that the model makes nothing of
                return best[name]
            return keep_within(parts[name], format, quantize_coupled(parts[name], format, rows, one_sided), best[name])

        tried["coupled"] = dict(zip(parts, pool.map(coupled, parts), strict=True))

    held_out = {name: outputs.held_out(name) for name in parts} if outputs is not None else None

    def judge(task: tuple[Method | None, str, int, int]) -> float:
        method, name, start, stop = task
        error = parts[name][start:stop]
        if method is not None:
            error = error - dequantize(cut_rows(tried[method][name], start, stop), format, columns)
        return output_error(error, judged) if held_out is None else cost(error, held_out[name], judged)

    errors: dict[Method | None, float] = dict.fromkeys((None, *tried), 0.0)
    spans = tasks if held_out is None else [(name, 0, len(weight)) for name, weight in parts.items()]
    judgements = [(one, *span) for one in errors for span in spans]
    for (judged_method, *_), error in zip(judgements, pool.map(judge, judgements), strict=True):
        errors[judged_method] += error
    method = min(tried, key=lambda one: errors[one])
    blocks = tried[method]
    if method == "weighted":
        blocks = _told(parts, format, blocks, tried["plain"])
    total = errors[None] or 1.0
    choice = Choice(tuple(parts), format, method, errors["plain"] / total, errors[method] / total, reason)
    return Quantized(choice, blocks)


def keep_within(
    weight: Array, format: BlockFormat, wanted: QuantizedBlocks, simpler: QuantizedBlocks
) -> QuantizedBlocks:
    """`wanted`, but of a row that has a block beyond what `verify` takes for moved on purpose, `simpler`."""
    rows: NDArray[np.bool_] = np.asarray(beyond(weight, wanted, format).any(axis=1))
    return take_rows(wanted, simpler, rows)


def _one_sided(
    weight: Array, format: BlockFormat, factor: Factor, moments: Array, damping: float, rounds: int
) -> QuantizedBlocks:
    planes = quantize_gptq(weight, format, factor)
    return descend(weight, planes, format, moments, damping, rounds) if rounds else planes


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
