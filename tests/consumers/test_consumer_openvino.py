"""OpenVINO's own ONNX reader on the folder as it is: greedy tokens, and a second turn on the kept caches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lfm2export.consumers import ConsumerReport, Verdict, check_consumers, locate
from lfm2export.contract import LogitsMode
from lfm2export.pipeline import build
from lfm2export.recipes import RECIPES, Options


@pytest.fixture(scope="module")
def report(shipped_artifact: Path) -> ConsumerReport:
    return check_consumers(shipped_artifact, consumers=["openvino"])


@pytest.mark.consumer
@pytest.mark.parametrize("dtype", [dtype for dtype in RECIPES if dtype != "q8" and not RECIPES[dtype].few_operators])
def test_every_file_gives_the_python_loops_tokens(report: ConsumerReport, dtype: str) -> None:
    """float16 files too: their SiLU is in operators that OpenVINO computes in float16."""
    found = next(one for one in report.results if one.dtype == dtype)
    assert found.verdict is Verdict.PASSED, report.to_markdown()
    assert found.noise is not None
    if dtype == "fp32":  # exact there; elsewhere a near tie in the first turn leaves nothing to compare
        assert "tokens: chat, second turn" in [check.name for check in found.checks]
        assert found.noise < 1e-4


@pytest.mark.consumer
def test_q8_runs_in_blocks_and_is_said_not_to_in_channels(report: ConsumerReport, tmp_path: Path) -> None:
    found = next(one for one in report.results if one.dtype == "q8")
    assert found.verdict is Verdict.NOT_RUN and "--q8 blocks" in (found.reason or "")
    assert found.version is not None
    out = build(None, dtypes=["q8"], options=Options(q8="blocks"), out=tmp_path / "out").folder
    (blocks,) = check_consumers(out, consumers=["openvino"]).results
    assert blocks.verdict is Verdict.PASSED, blocks


@pytest.mark.consumer
def test_4_bits_run_with_plain_operators_and_are_said_not_to_with_few(report: ConsumerReport, tmp_path: Path) -> None:
    dtypes = [dtype for dtype in RECIPES if RECIPES[dtype].few_operators]
    for found in report.results:
        if found.dtype in dtypes:
            assert found.verdict is Verdict.NOT_RUN and "--operators plain" in (found.reason or "")
    out = build(None, dtypes=dtypes, options=Options(operators="plain"), out=tmp_path / "out").folder
    for found in check_consumers(out, consumers=["openvino"]).results:
        assert found.verdict is Verdict.PASSED, found


def test_where_it_is_not_installed_it_is_not_run(
    tiny_artifact: Callable[[LogitsMode], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locate, "TOOLS", tmp_path)
    report = check_consumers(tiny_artifact("last"), consumers=["openvino"])
    assert {one.verdict for one in report.results} == {Verdict.NOT_RUN} and not report.good
    assert {one.reason for one in report.results} == {f"OpenVINO is not installed; {locate.SETUP}"}
