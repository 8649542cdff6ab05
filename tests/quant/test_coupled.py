"""Both sides: what rows that answer for each other cost, and that nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lfm2export.quant import coupled, dequantize
from lfm2export.quant.coupled import DAMPING, ROWS, cost, quantize_coupled
from lfm2export.quant.gptq import factorize, quantize_gptq
from lfm2export.weights import BlockFormat, QuantizedBlocks
from matmulnbits import read_by_onnxruntime
from problems import correlated

Array = NDArray[np.float32]

FORMATS = [BlockFormat(4, size, symmetric) for size in (16, 32, 128) for symmetric in (True, False)]


def moments(size: int, seed: int) -> tuple[Array, Array]:
    """(rows [T, size], mean of x^T x): correlated, and of sizes that differ."""
    rows = correlated(np.random.default_rng((seed, size)), 300, size).astype(np.float32)
    return rows, rows.T @ rows / np.float32(len(rows))


def problem(rows: int, columns: int, seed: int = 0) -> tuple[Array, Array, Array]:
    """(weight [N, K], F [N, N], inputs [T, K])."""
    weight = np.random.default_rng((seed, rows, columns)).standard_normal((rows, columns)) * 0.02
    return weight.astype(np.float32), moments(rows, seed)[1], moments(columns, seed + 1)[0]


def both(weight: Array, format: BlockFormat, outputs: Array, inputs: Array) -> tuple[QuantizedBlocks, QuantizedBlocks]:
    """Rows by themselves, and answering for each other."""
    factor = factorize(inputs.T @ inputs / np.float32(len(inputs)))

    def one_sided(rows: Array) -> QuantizedBlocks:
        return quantize_gptq(rows, format, factor)

    return one_sided(weight), quantize_coupled(weight, format, factorize(outputs, DAMPING), one_sided)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_it_costs_less_than_rows_by_themselves(format: BlockFormat) -> None:
    """200 rows: seven turns, the last one short."""
    weight, outputs, inputs = problem(200, 96)
    alone, together = both(weight, format, outputs, inputs)
    costs = [cost(weight - dequantize(found, format, 96), outputs, inputs) for found in (alone, together)]
    assert costs[1] < 0.85 * costs[0]
    assert together.codes.shape == alone.codes.shape and together.scales.dtype == np.float16
    np.testing.assert_array_equal(read_by_onnxruntime(together, format, 96), dequantize(together, format, 96))


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(FORMATS), st.integers(1, 80), st.integers(1, 70), st.integers(0, 99))
def test_outputs_that_do_not_know_of_each_other_change_nothing(
    format: BlockFormat, rows: int, columns: int, seed: int
) -> None:
    weight, _, inputs = problem(rows, columns, seed)
    independent = np.diag(np.random.default_rng(seed).uniform(0.1, 2, rows)).astype(np.float32)
    alone, together = both(weight, format, independent, inputs)
    # Another split of the rows sums in another order: a code in many may fall on the other side of a half.
    same = (alone.codes == together.codes).mean()
    assert np.array_equal(alone.scales, together.scales) and same >= 0.99


def test_one_turn_is_gptq_itself() -> None:
    """So many rows as are taken at once do not answer for each other."""
    format = BlockFormat(4, 32, symmetric=False)
    weight, outputs, inputs = problem(ROWS, 64)
    alone, together = both(weight, format, outputs, inputs)
    np.testing.assert_array_equal(dequantize(alone, format, 64), dequantize(together, format, 64))


def test_an_error_that_all_rows_feel_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """F of ones: only the sum of all rows' errors counts, and one row at a time can bring it near zero."""
    monkeypatch.setattr(coupled, "ROWS", 1)
    format = BlockFormat(4, 32, symmetric=False)
    weight, _, inputs = problem(40, 64)
    outputs = np.ones((40, 40), np.float32)
    alone, together = both(weight, format, outputs, inputs)
    before, after = (np.square((weight - dequantize(q, format, 64)).sum(axis=0)).sum() for q in (alone, together))
    assert after < 0.2 * before


def test_cost_is_its_definition() -> None:
    weight, outputs, inputs = problem(7, 5)
    error = weight.astype(np.float64)
    expected = np.trace(outputs @ error @ (inputs.T @ inputs) @ error.T)
    assert cost(weight, outputs, inputs) == pytest.approx(float(expected), rel=1e-5)
