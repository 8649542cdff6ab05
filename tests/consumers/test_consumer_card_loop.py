"""The model card's onnxruntime loop on this onnxruntime and on the oldest one that runs every file."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import onnxruntime
import pytest

from lfm2export.consumers import ConsumerReport, Verdict, check_consumers, locate
from lfm2export.consumers.asked import Asked
from lfm2export.consumers.card_loop import run_release
from lfm2export.pipeline import build
from lfm2export.recipes import RECIPES, Options

pytestmark = pytest.mark.consumer

OLDEST = "1.22.0"


@pytest.fixture(scope="module")
def report(shipped_artifact: Path) -> ConsumerReport:
    return check_consumers(shipped_artifact, consumers=["onnxruntime"])


@pytest.mark.parametrize("dtype", RECIPES)
@pytest.mark.parametrize("version", [onnxruntime.__version__, OLDEST])
def test_every_file_gives_the_python_loops_tokens(report: ConsumerReport, dtype: str, version: str) -> None:
    (found,) = (one for one in report.results if (one.dtype, one.version) == (dtype, version))
    if version == OLDEST and RECIPES[dtype].few_operators:
        assert found.verdict is Verdict.NOT_RUN
        assert "CausalConvWithState needs onnxruntime 1.30" in str(found.reason)
    else:
        assert found.verdict is Verdict.PASSED, report.to_markdown()


def test_the_oldest_runs_4_bits_with_plain_convolutions(tmp_path: Path) -> None:
    python = locate.oldest_onnxruntime()
    if isinstance(python, locate.Missing):
        pytest.skip(python.reason)
    folder = build(None, dtypes=["q4"], options=Options(operators="plain"), out=tmp_path / "out").folder
    (found,) = run_release(python, folder, {"q4": Asked(folder, "q4")})
    assert (found.verdict, found.version) == (Verdict.PASSED, OLDEST), found


def test_the_program_is_the_cards() -> None:
    program = resources.files("lfm2export.consumers") / "examples" / "loop.py.txt"
    tested = Path(__file__).parent.parent / "data" / "card_loop.py.txt"
    assert program.read_text(encoding="utf-8") == tested.read_text(encoding="utf-8")
