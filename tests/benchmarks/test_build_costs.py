"""The table of build costs: which figures go in, and which ratios are taken."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from benchmarks.build import ALL, OURS, PEERS, best, main, table
from benchmarks.peers import genai
from lfm2export.cli import main as cli
from lfm2export.recipes import RECIPES


def run(seconds: float, anonymous: float) -> dict[str, float]:
    return {
        "seconds": seconds,
        "cpu_seconds": 1.5 * seconds,
        "others": 0.02,
        "anonymous_mb": anonymous,
        "resident_mb": anonymous + 100,
        "folder_mb": 238.0,
    }


RECORD = {
    "size": "350M",
    "date": "2026-01-02",
    "machine": "a machine",
    "versions": {"torch": "1", "numpy": "2"},
    "runs": {
        "q4": [run(12, 500), run(10, 510)],
        "q4-round": [run(8, 400)],
        "genai-rtn": [run(16, 4000)],
        "genai-vendor": [run(100, 5100)],
    },
}


def test_the_fastest_round_counts_and_the_largest_memory() -> None:
    found = best(RECORD["runs"]["q4"])  # type: ignore[index]
    assert (found["seconds"], found["cpu_seconds"], found["anonymous_mb"]) == (10, 15, 510)


def test_plain_rounding_is_compared_with_plain_rounding_and_all_else_with_the_default() -> None:
    rows = {
        line.split("|")[2].strip(): [cell.strip() for cell in line.split("|")]
        for line in table([RECORD]).split("\n")[2:6]
    }
    assert rows["genai-rtn"][10:12] == ["2.0", "10.0"]
    assert rows["genai-vendor"][10:12] == ["10.0", "10.0"]
    assert rows["q4"][10:12] == ["", ""]
    assert rows["q4"][5:7] == ["1.50", "2%"]


def test_a_record_without_ours_has_no_ratio() -> None:
    runs = {"genai-rtn": [run(16, 4000)]}
    assert table([RECORD | {"runs": runs}]).split("\n")[2].endswith("| | |")


def test_the_table_says_what_it_was_measured_on() -> None:
    assert "2026-01-02, a machine; torch 1, numpy 2" in table([RECORD])


def test_cases_name_what_exists() -> None:
    assert set(PEERS.values()) <= set(genai.RECIPES)
    assert set(ALL) == set(RECIPES)
    for options in OURS.values():  # click refuses an option that it does not know before it looks for the folder
        result = CliRunner().invoke(cli, ["build", "/nowhere/at/all", *options])
        assert result.exit_code == 2 and "No such option" not in result.output


def test_an_unknown_case_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "350M", "--case", "q5"])
    assert "q5" in capsys.readouterr().err
