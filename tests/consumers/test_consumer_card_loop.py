"""The model card's onnxruntime loop on this onnxruntime and on the oldest one that runs every file."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import onnxruntime
import pytest

from lfm2export.consumers import ConsumerReport, Verdict, check_consumers
from lfm2export.recipes import RECIPES

pytestmark = pytest.mark.consumer

OLDEST = "1.22.0"


@pytest.fixture(scope="module")
def report(shipped_artifact: Path) -> ConsumerReport:
    return check_consumers(shipped_artifact, consumers=["onnxruntime"])


@pytest.mark.parametrize("dtype", RECIPES)
@pytest.mark.parametrize("version", [onnxruntime.__version__, OLDEST])
def test_every_file_gives_the_python_loops_tokens(report: ConsumerReport, dtype: str, version: str) -> None:
    found = [one for one in report.results if (one.dtype, one.version) == (dtype, version)]
    assert [one.verdict for one in found] == [Verdict.PASSED], report.to_markdown()


def test_the_program_is_the_cards() -> None:
    program = resources.files("lfm2export.consumers") / "examples" / "loop.py.txt"
    tested = Path(__file__).parent.parent / "data" / "card_loop.py.txt"
    assert program.read_text(encoding="utf-8") == tested.read_text(encoding="utf-8")
