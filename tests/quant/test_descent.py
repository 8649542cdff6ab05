"""After GPTQ: no row gets worse, most get better, and the layout stays what the runtime reads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lfm2export.quant import dequantize, descent, quantize
from lfm2export.quant.descent import descend, rounds_for
from lfm2export.quant.gptq import DAMPING, factorize, quantize_gptq
from lfm2export.weights import BlockFormat, QuantizedBlocks
from matmulnbits import read_by_onnxruntime
from problems import problem

Array = NDArray[np.float32]

FORMATS = [BlockFormat(4, size, symmetric) for size in (16, 32, 128) for symmetric in (True, False)]


def row_errors(weight: Array, blocks: QuantizedBlocks, format: BlockFormat, hessian: Array) -> NDArray[np.float64]:
    """e H e^T of each row in float64 with H damped, by its definition."""
    exact = hessian.astype(np.float64)
    exact += DAMPING * exact.trace() / len(exact) * np.eye(len(exact))
    error = (weight - dequantize(blocks, format, weight.shape[1])).astype(np.float64)
    found: NDArray[np.float64] = np.einsum("nk,kl,nl->n", error, exact, error)
    return found


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_it_lowers_what_gptq_leaves(format: BlockFormat) -> None:
    """200 columns: blocks of columns, and a last block that is not full."""
    weight, hessian = problem(40, 200)
    before = quantize_gptq(weight, format, factorize(hessian))
    after = descend(weight, before, format, hessian, DAMPING)
    old, new = row_errors(weight, before, format, hessian), row_errors(weight, after, format, hessian)
    assert (new <= old * (1 + 1e-4)).all()
    assert new.sum() < 0.985 * old.sum()
    assert after.zero_points is before.zero_points
    assert after.codes.dtype == np.uint8 and after.codes.shape == before.codes.shape
    assert after.scales.dtype == np.float16


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(FORMATS), st.integers(1, 4), st.integers(1, 90), st.integers(0, 99), st.integers(1, 120))
def test_no_row_gets_worse(format: BlockFormat, rows: int, columns: int, seed: int, tokens: int) -> None:
    """Also with fewer tokens than columns, and from plain rounding."""
    weight, hessian = problem(rows, columns, seed, tokens)
    before = quantize(weight, format)
    after = descend(weight, before, format, hessian, DAMPING)
    resolution = 1e-10 * float((weight**2).sum()) * float(hessian.max())
    assert (
        row_errors(weight, after, format, hessian)
        <= row_errors(weight, before, format, hessian) * (1 + 1e-4) + resolution
    ).all()


def test_codes_of_independent_inputs_are_the_nearest() -> None:
    """H = I, and scales that stay: each code is then judged by itself, and rounding is already best."""
    weight, _ = problem(6, 64)
    format = BlockFormat(4, 32, symmetric=False)
    best = quantize(weight, format)
    found = descend(weight, best, format, np.eye(64, dtype=np.float32), 0.0, rounds=1)
    identity = np.eye(64, dtype=np.float32)
    assert row_errors(weight, found, format, identity).sum() <= row_errors(weight, best, format, identity).sum()
    assert (found.codes == best.codes).mean() > 0.98


def test_rows_do_not_depend_on_each_other() -> None:
    weight, hessian = problem(9, 96)
    format = BlockFormat(4, 32, symmetric=False)
    blocks = quantize(weight, format)
    whole = descend(weight, blocks, format, hessian, DAMPING)
    part = QuantizedBlocks(blocks.codes[3:7], blocks.scales[3:7], blocks.zero_points[3:7])  # type: ignore[index]
    alone = descend(weight[3:7], part, format, hessian, DAMPING)
    np.testing.assert_allclose(
        dequantize(alone, format, 96), dequantize(whole, format, 96)[3:7], atol=1e-3 * float(np.abs(weight).max())
    )


def test_memory_is_bounded_by_a_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales are refitted for some rows at a time; how many is no matter."""
    weight, hessian = problem(9, 96)
    format = BlockFormat(4, 32, symmetric=False)
    blocks = quantize(weight, format)
    whole = descend(weight, blocks, format, hessian, DAMPING)
    monkeypatch.setattr(descent, "PARABOLAS", 2 * 3 * 3)
    parted = descend(weight, blocks, format, hessian, DAMPING)
    np.testing.assert_allclose(
        dequantize(parted, format, 96), dequantize(whole, format, 96), atol=1e-3 * float(np.abs(weight).max())
    )


def test_the_widest_matrices_go_without() -> None:
    """Those of the released shapes: 1,024 to 2,048 columns, and w2's 4,608 to 10,752."""
    assert [rounds_for(columns) for columns in (256, 1024, 2048, 4608, 6912, 10752)] == [2, 2, 2, 1, 0, 0]


def test_zero_rows_and_columns_stay_zero() -> None:
    weight, hessian = problem(5, 64)
    weight[2] = 0
    hessian[:, 5] = hessian[5] = 0
    format = BlockFormat(4, 32, symmetric=False)
    found = descend(weight, quantize(weight, format), format, hessian, DAMPING)
    assert not dequantize(found, format, 64)[2].any()
    assert np.isfinite(dequantize(found, format, 64)).all()


@pytest.mark.parametrize("format", FORMATS[2:4], ids=str)
def test_onnxruntime_reads_what_we_mean(format: BlockFormat) -> None:
    weight, hessian = problem(8, 64)
    found = descend(weight, quantize(weight, format), format, hessian, DAMPING)
    np.testing.assert_allclose(
        read_by_onnxruntime(found, format, 64), dequantize(found, format, 64), atol=1e-6, rtol=1e-5
    )
