"""What a build needs on disk, before it is begun: never more than it takes, and nearly that."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lfm2export.contract import MODEL_FILES, LogitsMode
from lfm2export.errors import OutputError
from lfm2export.quant.blocks import row_bytes
from lfm2export.recipes import RECIPES, Calibration, Options, Target
from lfm2export.sensitivity.formats import candidates
from lfm2export.space import LARGEST, SMALLEST, check_space, least_bytes, least_calibrated_bytes
from lfm2export.spec import parse_spec
from lfm2export.synth import family_config
from tiny import tiny_config

TINY = parse_spec(tiny_config())


def test_no_file_is_smaller_and_none_much_larger(tiny_artifact: Callable[[LogitsMode], Path]) -> None:
    folder = tiny_artifact("last")
    for dtype in RECIPES:
        size = (folder / "onnx" / f"{MODEL_FILES[dtype]}_data").stat().st_size
        assert least_bytes(TINY, dtype, Options()) <= size <= 1.1 * least_bytes(TINY, dtype, Options()), dtype


def test_figures_of_a_released_shape() -> None:
    spec = parse_spec(family_config("350M"))
    sizes = {dtype: least_bytes(spec, dtype, Options()) / 1e6 for dtype in RECIPES}
    assert sizes["fp32"] == pytest.approx(spec.num_parameters * 4 / 1e6, rel=1e-9)
    assert sizes["fp16"] == pytest.approx(spec.num_parameters * 2 / 1e6, rel=1e-9)
    assert sizes["q4"] == pytest.approx(235.3, abs=0.5)
    assert least_bytes(spec, "q4", Options(target=Target(300, "MB"))) < least_bytes(spec, "q4", Options())


def test_calibrated_matrices_are_there_twice() -> None:
    asked = Options(calibration=Calibration(tokens=2048))
    assert least_calibrated_bytes(TINY, ["fp32", "q4"], Options()) == 0
    assert 0 < least_calibrated_bytes(TINY, ["fp32", "q4"], asked) < least_bytes(TINY, "q4", asked)


def test_formats_are_the_extremes_of_what_a_target_may_choose() -> None:
    sizes = [row_bytes(format, 2048) for format in candidates("search")]
    assert (row_bytes(SMALLEST, 2048), row_bytes(LARGEST, 2048)) == (min(sizes), max(sizes))


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    needed = sum(least_bytes(TINY, dtype, Options()) for dtype in ("fp32", "q4"))
    free = [needed, needed - 1]
    monkeypatch.setattr("lfm2export.space.shutil.disk_usage", lambda path: usage._replace(free=free.pop(0)))
    check_space(tmp_path / "new" / "out", TINY, ["fp32", "q4"], Options())
    with pytest.raises(OutputError, match=f"fp32, q4 need at least 1 MB and {tmp_path} has 1 MB free") as refused:
        check_space(tmp_path / "new" / "out", TINY, ["fp32", "q4"], Options())
    assert "\n" not in str(refused.value)
