"""The benchmark of drafts: given answers are what is decoded, and what the table takes from a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.drafts import document
from benchmarks.drafts.measure import CONTEXT, Given, Row, measure, rate, step_costs
from benchmarks.drafts.tasks import KINDS, encoders, tasks
from lfm2export.runtime import OnnxModel
from standin import write_standin


def test_tasks_of_every_kind_cut_in_both_units() -> None:
    found, known = tasks(), encoders()
    assert {task.kind for task in found} == set(KINDS) and len({task.name for task in found}) == len(found)
    for task in found:
        pieces, words = (known[units](task.answer) for units in ("pieces", "words"))
        assert min(len(pieces), len(words)) > 100, task.name
        assert len(pieces) > len(words) or task.kind == "page", "a page is signs more than words"
    text = "def f(x):\n    return x"
    assert known["words"](text) == known["words"](text) and max(known["words"](text)) < 65_536


def test_a_given_answer_is_what_is_decoded_and_what_it_copies_is_drafted(tmp_path: Path) -> None:
    model = OnnxModel(write_standin(tmp_path, logits="all"), threads=1)
    prompt = [int(token) for token in np.random.default_rng(0).permutation(39)]
    row = measure(model, "copy", "copies", prompt, prompt[3:33], rounds=2)
    assert (row.prompt, row.answer, row.rounds) == (39, 30, 2)
    assert row.accepted >= 15 and row.parted is None and row.steps == 29 - row.accepted
    assert row.ratio == row.drafts / row.plain > 0
    with pytest.raises(IndexError):
        Given(2, [5])(np.zeros(4, np.float32), [1, 2, 5])
    assert sorted(step_costs(model)) == [1, 2, 3] and CONTEXT < 2048


def test_own_answers_are_the_model_s(tmp_path: Path) -> None:
    model = OnnxModel(write_standin(tmp_path, logits="all"), threads=1)
    row = measure(model, "own", "free", [3, 1, 4, 1, 5], 24, rounds=1)
    assert row.answer == 24 and row.parted is None and row.gap is None


def test_a_rate_is_that_of_undisturbed_steps() -> None:
    steps = [(1, 0.1)] * 6 + [(1, 9.0)] * 2 + [(3, 0.2)] * 3 + [(3, 0.7)]
    assert rate(steps, list(range(13)), 1) == pytest.approx(12 / (8 * 0.1 + 4 * 0.2))


def test_the_table(tmp_path: Path) -> None:
    rows = (
        Row("a", "copies", 9, 20, 3, 11.0, 22.0, 9, 12, 10),
        Row("b", "free", 9, 20, 1, 10.0, 9.9, 19, 2, 0, 7, 0.0123),
    )
    run = document.Run("M", "q4", "pieces", "a machine", 2, {"x": "1"}, {"1": 0.01, "2": 0.012}, rows)
    path = tmp_path / "drafts.json"
    document.add(path, run)
    document.add(path, replace(run, rows=(replace(rows[1], task="c", drafts=9.7),)))
    document.add(path, replace(run, units="own"))
    found = document.read(path)
    assert [(one.units, [row.task for row in one.rows]) for one in found] == [
        ("own", ["a", "b"]),
        ("pieces", ["a", "b", "c"]),
    ]
    text = document.render(found)
    assert "| a | copies | 9 | 20 | 11.0 | 22.0 | 2.00 | 10 of 12 | all |" in text
    assert "| b | free | 9 | 20 | 10.0 | 9.9 | 0.99 | 0 of 2 | 7, gap 0.012 |" in text
    assert "| **free** | | | | | | **0.98** (0.97 at least) | | |" in text
    assert "A step of 1 tokens 10.0 ms (1.00), 2 tokens 12.0 ms (1.20)." in text
