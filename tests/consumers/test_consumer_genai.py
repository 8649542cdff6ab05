"""onnxruntime-genai on the folder as it is: greedy tokens, a second turn on the kept cache, a batch padded right."""

from __future__ import annotations

from pathlib import Path

import pytest

from lfm2export.consumers import ConsumerReport, Verdict, check_consumers
from lfm2export.recipes import RECIPES

pytestmark = pytest.mark.consumer


@pytest.fixture(scope="module")
def report(shipped_artifact: Path) -> ConsumerReport:
    return check_consumers(shipped_artifact, consumers=["genai"])


@pytest.mark.parametrize("dtype", RECIPES)
def test_every_file_gives_the_python_loops_tokens(report: ConsumerReport, dtype: str) -> None:
    found = next(one for one in report.results if one.dtype == dtype)
    assert found.verdict is Verdict.PASSED, report.to_markdown()
    names = [check.name for check in found.checks]
    assert "chat template" in names
    assert sum("pads on the right" in name for name in names) == 3
    if dtype == "fp32":  # exact there; elsewhere a near tie in the first turn leaves nothing to compare
        assert "tokens: chat, second turn" in names
