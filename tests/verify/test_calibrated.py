"""A calibrated q4 file: its codes are moved on purpose, and that hides no fault."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import faults
from lfm2export.pipeline import build
from lfm2export.quant.blocks import pack, unpack
from lfm2export.recipes import Calibration, Options
from lfm2export.verify.figures import CheckName, Verdict
from lfm2export.verify.file import Plan
from test_faults import OUT_PROJ, W2, verified


@pytest.fixture(scope="module")
def calibrated(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = Options(calibration=Calibration(tokens=2048))
    out = tmp_path_factory.mktemp("calibrated") / "out"
    return build(str(tiny_source), dtypes=["q4"], options=options, out=out).folder


def exchanged_blocks(part: str) -> faults.Plant:
    """Two neighbours in a row: codes, scales and zero points, so that each is whole and in the other's place."""

    def fault(p: faults.Patient) -> None:
        for name in ("codes", "scales"):
            values = p.read(f"{part}.{name}")
            values[3, [1, 2]] = values[3, [2, 1]]
            p.write(f"{part}.{name}", values)
        zeros = p.read(f"{part}.zero_points")
        p.write(f"{part}.zero_points", _with_row(zeros, lambda row: row[[0, 2, 1, *range(3, len(row))]]))

    return fault


def wrong_zero_point(part: str, by: int) -> faults.Plant:
    def fault(p: faults.Patient) -> None:
        zeros = p.read(f"{part}.zero_points")

        def change(row: np.ndarray) -> np.ndarray:
            row[1] = row[1] - by if row[1] >= by else row[1] + by
            return row

        p.write(f"{part}.zero_points", _with_row(zeros, change))

    return fault


def _with_row(zeros: np.ndarray, change: object) -> np.ndarray:
    """Row 3 of packed zero points after `change` of it unpacked."""
    row = unpack(zeros[3], 4, 2 * zeros.shape[1]).copy()
    zeros[3] = pack(change(row), 4)  # type: ignore[operator]
    return zeros


FAULTS = {
    "block scale off by 4": (faults.corrupted_scale(W2, 4), W2),
    "block scale off by 2": (faults.corrupted_scale(W2, 2), W2),
    "zero point off by one": (wrong_zero_point(W2, 1), W2),
    "zero point off by two": (wrong_zero_point(W2, 2), W2),
    "two blocks exchanged": (exchanged_blocks(W2), W2),
    "transposed projection": (faults.transposed_projection(OUT_PROJ), OUT_PROJ),
}


def test_a_clean_one_passes_and_is_known_for_what_it_is(plan: Plan, calibrated: Path, tmp_path: Path) -> None:
    result = verified(plan, calibrated, "q4", lambda patient: None, tmp_path / "copy")
    assert result.verdict is Verdict.PASSED, result.failures
    assert result.weights is not None
    moved = [measure for measure in result.weights if measure.moved]
    assert len(moved) > 10
    assert all((measure.wrong, measure.worse or 0, measure.first) == (0, 0, None) for measure in result.weights)
    check = next(check for check in result.checks if check.name is CheckName.WEIGHTS)
    assert f"{len(moved)} of them calibrated" in check.summary


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_its_weights_is_caught(plan: Plan, calibrated: Path, tmp_path: Path, name: str) -> None:
    fault, tensor = FAULTS[name]
    result = verified(plan, calibrated, "q4", fault, tmp_path / "spoiled")
    assert result.verdict is Verdict.FAILED
    first = result.failures[0]
    assert first.check is CheckName.WEIGHTS
    assert first.tensor is not None and first.tensor.startswith(tensor)
    if tensor == W2:
        assert f"{tensor}, row 3, block 1" in first.message
        assert first.got == (2 if name == "two blocks exchanged" else 1)


@pytest.mark.parametrize(
    ("fault", "tensor"), [(faults.swapped_gate(1), "present_conv.2"), (faults.mixed_query_heads(3), "logits")]
)
def test_a_fault_in_its_graph_is_caught(
    plan: Plan, calibrated: Path, tmp_path: Path, fault: faults.Plant, tensor: str
) -> None:
    result = verified(plan, calibrated, "q4", fault, tmp_path / "spoiled")
    assert result.failures[0].check is CheckName.ARITHMETIC
    assert result.failures[0].tensor == tensor


def test_an_uncalibrated_file_gets_no_such_room(plan: Plan, spoilable: Path, tmp_path: Path) -> None:
    """One code moved by one, in a file of nearest codes."""

    def nudge(p: faults.Patient) -> None:
        codes = p.read(f"{W2}.codes")
        codes[3, 1, 0] ^= 1
        p.write(f"{W2}.codes", codes)

    result = verified(plan, spoilable, "q4", nudge, tmp_path / "spoiled")
    assert result.failures[0].check is CheckName.WEIGHTS
    assert "1 codes are not the nearest" in result.failures[0].message


def test_a_matrix_that_calibration_hardly_moved_is_judged_like_the_others(
    plan: Plan, calibrated: Path, spoilable: Path, tmp_path: Path
) -> None:
    """All but two of its rows are those of a file of nearest codes: fewer blocks are moved than tell a method."""
    nearest = faults.opened(spoilable, "q4")

    def settle(p: faults.Patient) -> None:
        for kind in ("codes", "scales", "zero_points"):
            values = p.read(f"{W2}.{kind}")
            values[2:] = nearest.read(f"{W2}.{kind}")[2:]
            p.write(f"{W2}.{kind}", values)

    result = verified(plan, calibrated, "q4", settle, tmp_path / "settled")
    assert result.verdict is Verdict.PASSED, result.failures
    assert result.weights is not None
    settled = next(measure for measure in result.weights if measure.initializer == f"{W2}.codes")
    assert 0 < (settled.moved or 0) < 0.02 * np.prod(settled.shape)
