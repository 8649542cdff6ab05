"""The harness itself: scoring of a model that is known, pairing, rows without their peer, table and plot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality import make, run
from benchmarks.quality.__main__ import chosen
from benchmarks.quality.make import Made
from benchmarks.quality.methods import BASELINE, METHODS, TARGETS, LlamaCpp, Method, Ours, Target
from benchmarks.quality.plot import draw, paint
from benchmarks.quality.results import (
    COLUMNS,
    Column,
    Figures,
    Results,
    Row,
    ratio_of_means,
    read_results,
    write_results,
)
from benchmarks.quality.table import markdown
from lfm2export import measures
from lfm2export.checkpoint import open_checkpoint
from lfm2export.errors import Lfm2ExportError, StepError
from lfm2export.steps import Logits
from lfm2export.verify.expected import ExpectedChunk
from lfm2export.verify.text import Score

VOCABULARY, CHUNK, FIRST = 11, 8, 4


class Head:
    """A reference whose last rows are its logits already."""

    def logits(self, hidden: Logits) -> Logits:
        return hidden


def chunks(count: int = 5) -> list[ExpectedChunk]:
    random = np.random.default_rng(3)
    return [
        ExpectedChunk(
            tuple(random.integers(0, VOCABULARY, CHUNK).tolist()),
            FIRST,
            random.normal(size=(CHUNK - 1 - FIRST, VOCABULARY)).astype(np.float32),
            Head(),  # type: ignore[arg-type]
        )
        for _ in range(count)
    ]


def shifted(by: float) -> Score:
    """A fake runner: the reference's logits, the first of each row raised."""

    def score(chunk: ExpectedChunk) -> Logits:
        logits = chunk.logits.copy()
        logits[:, 0] += by
        return logits

    return score


def made(score: Score, files: list[Path] | None = None) -> Made:
    @contextmanager
    def opened() -> Iterator[Score]:
        yield score

    return Made(1000, files or [], dict.fromkeys(COLUMNS, opened))


def figures(*klds: float) -> Figures:
    return Figures(measures.mean(klds), 0.9, 30.0, klds)


def results(*rows: Row) -> Results:
    return Results(
        machine="a machine",
        versions={"torch": "1"},
        checkpoint="a model",
        parameters=2000,
        text="some text",
        task="0",
        chunks=3,
        decode_chunks=1,
        positions=12,
        reference_perplexity=29.5,
        baseline=BASELINE,
        rows=rows,
    )


def row(name: str, *klds: float, family: str = "lfm2-export", size: int = 1000) -> Row:
    return Row(name, family, f"make {name}", size, "abc", dict.fromkeys(COLUMNS, figures(*klds)))


MISSING = Row("gone", "llama.cpp", "make gone", None, None, dict.fromkeys(COLUMNS), "not run: llama is not installed")


def test_a_known_change_of_logits_has_the_kld_that_theory_says() -> None:
    expected = chunks()
    found, reason = run.score(made(shifted(0.5)), expected)
    assert reason is None
    for column, scored in (("prefill", expected), ("float", expected), ("decode", expected[:: run.DECODE_EVERY])):
        by_hand = [float(measures.kld(chunk.logits, shifted(0.5)(chunk)).mean()) for chunk in scored]
        got = found[column]  # type: ignore[index]
        assert got is not None and got.kld.mean == pytest.approx(np.mean(by_hand), rel=1e-12)
        assert got.chunk_kld == pytest.approx(by_hand, rel=1e-4)
    exact, _ = run.score(made(shifted(0.0)), expected)
    assert exact["prefill"] is not None and exact["prefill"].kld.mean == 0 and exact["prefill"].same_top == 1


def test_reference_perplexity_is_that_of_its_own_logits() -> None:
    expected = chunks()
    found, _ = run.score(made(shifted(0.0)), expected)
    assert found["prefill"] is not None
    assert run.reference_perplexity(expected) == pytest.approx(found["prefill"].perplexity)


def test_a_runtime_that_fails_in_one_column_leaves_the_others() -> None:
    def fails(chunk: ExpectedChunk) -> Logits:
        raise StepError("out of memory")

    whole, broken = made(shifted(0.1)), made(fails)
    mixed = Made(1, [], {**whole.columns, "decode": broken.columns["decode"]})
    found, reason = run.score(mixed, chunks())
    assert found["decode"] is None and found["prefill"] is not None and found["float"] is not None
    assert reason is not None and "decode" in reason and "out of memory" in reason


def test_a_missing_peer_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LFM2EXPORT_PEER_LLAMA", str(tmp_path / "nowhere"))
    found = run.measure(Method("Q4_0", LlamaCpp("Q4_0")), tmp_path, chunks(), None)
    assert found.weight_bytes is None and set(found.columns.values()) == {None}
    assert found.reason is not None and "not installed" in found.reason
    text = markdown(results(row(BASELINE, 1e-3, 2e-3), found))
    assert "| Q4_0 | – | – | – | – | – | – | – | – | – | – |" in text and "not installed" in text


def test_figures_of_the_same_bytes_are_kept_and_of_others_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"weights")
    monkeypatch.setattr(run, "make", lambda *_: made(shifted(0.5), [file]))
    method = Method("ours", Ours())
    fresh = run.measure(method, tmp_path, chunks(), None)
    assert fresh.columns["prefill"] is not None
    before = Row("ours", "lfm2-export", "", 1, fresh.digest, dict.fromkeys(COLUMNS, figures(7.0)))
    assert run.measure(method, tmp_path, chunks(), before).columns == before.columns
    file.write_bytes(b"other weights")
    assert run.measure(method, tmp_path, chunks(), before).columns == fresh.columns


def test_chunks_or_logits_that_differ_make_another_task() -> None:
    one, other = chunks(), chunks()
    assert run.task_of(one) == run.task_of(other)
    other[2].hidden[0, 0] += 1e-3
    assert run.task_of(one) != run.task_of(other)


def test_ours_that_refuses_its_options_says_why(tmp_path: Path) -> None:
    with pytest.raises(Lfm2ExportError, match="exited with 2"):
        make.make(Ours(("--block-size", "7")), tmp_path, tmp_path)


def test_a_ratio_is_paired_by_chunk() -> None:
    base = np.random.default_rng(0).exponential(size=200)
    same = ratio_of_means((0.7 * base).tolist(), base.tolist())
    assert same.mean == pytest.approx(0.7) and same.standard_error == pytest.approx(0, abs=1e-12)
    unpaired = ratio_of_means((0.7 * base[::-1]).tolist(), base.tolist())
    assert unpaired.mean == pytest.approx(0.7) and unpaired.standard_error is not None
    assert unpaired.standard_error > 0.03
    with pytest.raises(ValueError, match="paired"):
        ratio_of_means([1.0], [1.0, 2.0])


def test_the_standard_error_of_a_ratio_is_what_repetition_shows() -> None:
    random = np.random.default_rng(1)
    found = []
    for _ in range(400):
        base = random.exponential(size=48) + 0.2
        found.append(ratio_of_means((0.8 * base + 0.1 * random.normal(size=48)).tolist(), base.tolist()))
    spread = np.std([one.mean for one in found])
    assert np.mean([one.standard_error for one in found]) == pytest.approx(spread, rel=0.15)


def test_results_survive_their_json(tmp_path: Path) -> None:
    before = results(row(BASELINE, 1e-3, 2e-3, 3e-3), MISSING)
    write_results(before, tmp_path / "r.json")
    after = read_results(tmp_path / "r.json")
    assert after.rows[0] == before.rows[0] and after.rows[1] == before.rows[1]
    assert markdown(after) == markdown(before)
    (tmp_path / "r.json").write_text('{"schema_version": 99}', encoding="utf-8")
    with pytest.raises(ValueError, match="99"):
        read_results(tmp_path / "r.json")


def test_the_table_gives_bits_ratios_and_verdicts() -> None:
    found = results(row(BASELINE, 2e-3, 4e-3), row("better", 1e-3, 3e-3, size=1125), MISSING)
    targets = (Target("better", BASELINE, 0.7), Target("better", BASELINE, 0.6), Target("gone", BASELINE, 0.6))
    text = markdown(found, targets)
    assert "| better | 0.001 | 4.50 | 2.000 ± 1.000 | 0.667 ± 0.111 |" in text
    assert "| 66.7 ± 11.1 % | held |" in text and "| 66.7 ± 11.1 % | not held |" in text
    assert "| – | not measured |" in text and "- gone: not run: llama is not installed" in text


def test_the_plot_draws_every_measured_row_and_no_other(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    found = results(row(BASELINE, 2e-3, 4e-3), row("peer", 1e-3, 3e-3, family="onnxruntime"), MISSING)
    assert [one.name for one in paint(Figure().subplots(), found)] == [BASELINE, "peer"]
    draw(found, tmp_path / "one.svg")
    draw(found, tmp_path / "two.svg")
    drawn = (tmp_path / "one.svg").read_text(encoding="utf-8")
    assert drawn == (tmp_path / "two.svg").read_text(encoding="utf-8")
    assert BASELINE in drawn and "peer" in drawn and "gone" not in drawn


def test_rows_have_names_of_their_own_and_targets_name_rows() -> None:
    names = [method.name for method in METHODS]
    assert len(set(names)) == len(names) and BASELINE in names
    assert {name for target in TARGETS for name in (target.method, target.against)} <= set(names)
    columns: set[Column] = set(COLUMNS)
    assert columns == set(row("one", 1.0).columns)


def test_a_choice_of_rows_keeps_the_baseline() -> None:
    assert [method.name for method in chosen(["Q4_0"])] == [BASELINE, "llama.cpp Q4_0"]
    assert chosen(None) == list(METHODS)
    assert [method.name for method in chosen(["q8"])] == [BASELINE, "q8"]  # not the other row that holds it
    assert len(chosen(["outliers"])) == 4


def test_a_row_of_outliers_is_made_from_the_same_function(tiny_source: Path, tmp_path: Path) -> None:
    """Its file, equalized, is that of the source as it is, but for how factors of 50 and powers of two differ."""
    folder = tmp_path / "row"
    folder.mkdir()
    made = make.make(Ours(dtype="q8", outliers=50), tiny_source, folder)
    planted = open_checkpoint(folder / "source").rows("model.layers.0.ffn_norm.weight", 0, 64)
    clean = open_checkpoint(tiny_source).rows("model.layers.0.ffn_norm.weight", 0, 64)
    assert int((np.abs(planted / clean) > 40).sum()) == 12
    assert made.weight_bytes > 0 and "outlier channels x 50" in Ours(outliers=50).how
