"""`generate` says how tokens are chosen, and where an answer ends that the model did not end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lfm2export.cli import main
from lfm2export.contract import LogitsMode
from lfm2export.generation import drafts
from tiny import edit_json


@pytest.fixture
def folder(tiny_artifact: Callable[[LogitsMode], Path], tmp_path: Path) -> Path:
    """An artifact of one test's own."""
    return Path(shutil.copytree(tiny_artifact("last"), tmp_path / "artifact"))


def generate(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["generate", str(folder), "-p", "Hi", "--seed", "1", *options])


def test_it_says_how_tokens_are_chosen_and_why(folder: Path) -> None:
    short = ("--max-new-tokens", "2")
    stated = "[temperature 0.3, min_p 0.15, top_k 50, repetition_penalty 1.05 (generation_config.json)]\n"
    assert stated in generate(folder, *short).stderr
    assert "[greedy, repetition_penalty 1.05]\n" in generate(folder, *short, "--greedy").stderr
    assert (
        "[temperature 0.7, min_p 0.15, top_k 5"
        in generate(folder, *short, "--temperature", ".7", "--top-k", "5").stderr
    )
    edit_json(folder / "generation_config.json", do_sample=None, num_beams=4)
    said = generate(folder, *short).stderr
    assert "[greedy, repetition_penalty 1.05 (generation_config.json does not say do_sample)]\n" in said
    assert "[num_beams of generation_config.json is not used]\n" in said
    assert stated.replace(" (generation_config.json)", "") in generate(folder, *short, "--sample").stderr
    (folder / "generation_config.json").unlink()
    assert "[greedy (there is no generation_config.json)]\n" in generate(folder, *short).stderr


def test_the_tokenizers_length_is_a_default(folder: Path) -> None:
    generated = json.loads((folder / "generation_config.json").read_text())
    edit_json(folder / "generation_config.json", eos_token_id=generated["eos_token_id"], do_sample=False)
    edit_json(folder / "tokenizer_config.json", model_max_length=20)
    assert ", model_max_length;" in generate(folder).stderr
    assert "[30 tokens, length;" in generate(folder, "--max-new-tokens", "30").stderr


def test_drafts_change_how_fast_it_is_and_nothing_else(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for guess, found in (
        ("ONCE", (1.0,) * 5),
        ("ALIKE", (1.0,) * 5),
        ("DIFFERENTLY", 1.0),
    ):  # this model copies nothing
        monkeypatch.setattr(drafts, guess, found)
    options = ("--greedy", "--max-new-tokens", "60", "--repetition-penalty", "1")
    fast, plain = generate(folder, *options), generate(folder, *options, "--draft", "off")
    assert fast.stdout == plain.stdout and fast.exit_code == plain.exit_code == 0
    assert " drafts right;" in fast.stderr and "drafts" not in plain.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "1e-46"], "temperature is 1e-46, expected 0 (greedy), or a number from 1e-06"),
        (["--temperature", "nan"], "temperature is nan"),
        (["--top-k", "-1"], "top_k is -1"),
        (["--min-p", "2"], "min_p is 2.0"),
        (["--repetition-penalty", "0"], "repetition_penalty is 0.0"),
        (["--greedy", "--sample"], "--greedy and --sample exclude each other"),
    ],
)
def test_values_out_of_range_are_one_line(folder: Path, options: list[str], message: str) -> None:
    done = generate(folder, *options)
    assert done.exit_code == 2 and message in done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""
