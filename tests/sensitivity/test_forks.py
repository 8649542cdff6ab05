"""Forks against transformers' whole model in memory, with the one matrix quantized there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lfm2export import measures
from lfm2export.checkpoint import Checkpoint, open_checkpoint
from lfm2export.matrices import matrices
from lfm2export.quant import dequantize, quantize
from lfm2export.reference import load_reference
from lfm2export.reference.run import Run
from lfm2export.sensitivity import LENGTH, Sensitivity, measure_sensitivity, sequences_for, tokens_for
from lfm2export.sensitivity.forks import UNSCORED, Fork, Forked, run_forks
from lfm2export.sensitivity.formats import candidates, measured_format, squared_errors, stored_bytes
from lfm2export.weights import BlockFormat
from tiny import write_tiny

FOUR, EIGHT = BlockFormat(4, 32, symmetric=False), BlockFormat(8, 32, symmetric=True)
TOKENS = [
    np.random.default_rng(seed).integers(14, 512, length).tolist() for seed, length in ((1, 60), (2, 33), (3, 60))
]


@pytest.fixture(scope="module", params=["tied", "untied"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    odd = {"tie_word_embeddings": False, "conv_bias": True, "vocab_size": 500} if request.param == "untied" else {}
    folder = write_tiny(tmp_path_factory.mktemp("tiny") / request.param, **odd)
    return open_checkpoint(folder)


def run(checkpoint: Checkpoint, forks: list[Fork], folder: Path, threads: int = 2) -> Forked:
    tokens = [[token % checkpoint.spec.vocab_size for token in one] for one in TOKENS]
    return run_forks(checkpoint, checkpoint, forks, tokens, folder, threads=threads)


def whole_model(checkpoint: Checkpoint, fork: Fork | None) -> list[np.ndarray]:
    """Logits [T - 1, V] of every sequence by transformers' own model, the fork's matrix put in its place."""

    def override(name: str, start: int, stop: int) -> np.ndarray | None:
        if fork is None or name not in fork.matrix.parts:
            return None
        rows = checkpoint.rows(name, start, stop)
        return dequantize(quantize(rows, fork.format), fork.format, rows.shape[1])

    reference = load_reference(checkpoint.folder, "memory", override=override)
    runs = [Run.prefill([token % checkpoint.spec.vocab_size for token in one], None) for one in TOKENS]
    return [reference.logits(trace.hidden[UNSCORED:-1]) for trace in reference.run(runs)]


def test_every_fork_is_the_whole_model_with_one_matrix_quantized(checkpoint: Checkpoint, tmp_path: Path) -> None:
    forks = [Fork(matrix, FOUR) for matrix in matrices(checkpoint.spec)]
    forks += [Fork(matrices(checkpoint.spec)[-1], EIGHT), Fork(matrices(checkpoint.spec)[2], EIGHT)]
    found = run(checkpoint, forks, tmp_path)
    before = whole_model(checkpoint, None)
    assert found.positions == sum(len(rows) for rows in before)
    for fork, got in zip(forks, found.kld, strict=True):
        after = whole_model(checkpoint, fork)
        rows = [measures.kld(a, b) for x, y in zip(before, after, strict=True) for a, b in zip(x, y, strict=True)]
        assert got > 1e-9
        assert got == pytest.approx(float(np.mean(rows)), rel=2e-3, abs=1e-11), fork.matrix.name


def test_moments_are_those_of_what_each_matrix_reads(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """By transformers' own modules, watched while the whole model runs."""
    import torch

    found = run(checkpoint, [], tmp_path)
    reference = load_reference(checkpoint.folder, "memory")
    seen: dict[str, np.ndarray] = {}
    for name, module in reference.model.named_modules():
        if isinstance(module, torch.nn.Linear):

            def watch(_: object, inputs: tuple[torch.Tensor], name: str = name) -> None:
                x = inputs[0].reshape(-1, inputs[0].shape[-1]).double().numpy()
                seen[f"{name}.weight"] = seen.get(f"{name}.weight", 0) + (x * x).sum(0)

            module.register_forward_pre_hook(watch)
    for one in TOKENS:
        reference.model(torch.tensor([[token % checkpoint.spec.vocab_size for token in one]]))
    if checkpoint.spec.tie_word_embeddings:
        seen["model.embed_tokens.weight"] = seen.pop("lm_head.weight")
    assert set(found.moments) == set(seen)
    for name, moments in seen.items():
        np.testing.assert_allclose(found.moments[name], moments, rtol=1e-4, err_msg=name)


def test_nothing_depends_on_the_number_of_threads(checkpoint: Checkpoint, tmp_path: Path) -> None:
    forks = [Fork(matrix, FOUR) for matrix in matrices(checkpoint.spec)]
    one, three = (run(checkpoint, forks, tmp_path, threads=threads) for threads in (1, 3))
    assert one.kld == three.kld
    assert all(np.array_equal(one.moments[name], three.moments[name]) for name in one.moments)


def test_progress_ends_at_its_total(checkpoint: Checkpoint, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    forks = [Fork(matrix, FOUR) for matrix in matrices(checkpoint.spec)]
    run_forks(
        checkpoint,
        checkpoint,
        forks,
        [one[:33] for one in [[token % 500 for token in row] for row in TOKENS]],
        tmp_path,
        threads=1,
        progress=lambda stage, done, total, unit: told.append((done, total)),
    )
    counts = [done for done, _ in told]
    assert counts == sorted(counts) and told[-1][0] == told[-1][1] == 5 * (len(forks) + 1) - sum(
        fork.matrix.layer or 0 for fork in forks
    )


def test_a_matrix_that_loses_nothing_costs_nothing(tmp_path: Path) -> None:
    """Weights that lie on the 8-bit grid: -128 to 127 times a power of two, the extreme in every block."""
    spec_folder = write_tiny(tmp_path / "tiny")
    checkpoint = open_checkpoint(spec_folder)

    class OnGrid(Checkpoint):
        def rows(self, name: str, start: int, stop: int) -> np.ndarray:
            rows = super().rows(name, start, stop)
            if rows.ndim != 2:
                return rows
            rows = np.clip(np.rint(rows * 2000), -127, 127) / 1024
            rows[:, ::32] = -128 / 1024
            return rows.astype(np.float32)

    held = OnGrid(**{name: checkpoint.__dict__[name] for name in checkpoint.__dataclass_fields__})
    matrix = matrices(held.spec)[0]
    (tmp_path / "scratch").mkdir()
    found = run(held, [Fork(matrix, EIGHT), Fork(matrix, FOUR)], tmp_path / "scratch")
    assert found.kld[0] < 1e-9 < 1e-6 < found.kld[1]


def rated(checkpoint: Checkpoint, folder: Path) -> Sensitivity:
    return measure_sensitivity(checkpoint, checkpoint, TOKENS, "random", folder, quantizer="round", threads=2)


def test_every_format_of_every_matrix_is_rated(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_tiny(tmp_path / "tiny"))
    (tmp_path / "scratch").mkdir()
    found = rated(checkpoint, tmp_path / "scratch")
    assert (found.text, found.tokens) == ("random", 153)
    assert found.matrices == matrices(checkpoint.spec)
    for matrix in found.matrices:
        rows = {one.format: one for one in found.rated[matrix.parts]}
        assert tuple(rows) == candidates("round")
        assert all(one.bytes == stored_bytes(matrix, one.format) for one in rows.values())
        four, eight = rows[BlockFormat(4, 32, False, "round")], rows[BlockFormat(8, 32, True, "round")]
        assert four.measured and eight.measured == (matrix.layer is None)
        assert 0 < eight.kld < four.kld / 30
        assert four.kld < rows[BlockFormat(4, 128, True, "round")].kld


def test_what_is_extrapolated_is_near_what_is_measured(tmp_path: Path) -> None:
    """Random weights in 12 matrices: 4-bit blocks of 128 without a zero point from blocks of 32 with one."""
    checkpoint = open_checkpoint(write_tiny(tmp_path / "tiny", hidden_size=256, intermediate_size=512))
    (tmp_path / "scratch").mkdir()
    found = rated(checkpoint, tmp_path / "scratch")
    other = BlockFormat(4, 128, True, "round")
    forks = [Fork(matrix, other) for matrix in found.matrices]
    measured = run(checkpoint, forks, tmp_path / "scratch").kld
    ratios = [
        next(one.kld for one in found.rated[matrix.parts] if one.format == other) / kld
        for matrix, kld in zip(found.matrices, measured, strict=True)
    ]
    assert min(ratios) > 0.8 and max(ratios) < 1.25


def test_errors_are_weighed_by_what_the_columns_multiply(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    checkpoint = open_checkpoint(write_tiny(tmp_path / "tiny"))
    matrix = matrices(checkpoint.spec)[0]
    name = matrix.parts[0]
    moments = np.random.default_rng(0).exponential(size=matrix.columns)
    rows = checkpoint.rows(name, 0, matrix.rows)
    with ThreadPoolExecutor(2) as pool:
        found = squared_errors(checkpoint, matrix, (FOUR, EIGHT), {name: moments}, pool)
    for form in (FOUR, EIGHT):
        error = rows - dequantize(quantize(rows, form), form, matrix.columns)
        assert found[form] == pytest.approx(float((error.astype(np.float64) ** 2 * moments).sum()), rel=1e-5)


def test_the_table_is_measured_in_both_widths_and_a_layer_in_one(tmp_path: Path) -> None:
    spec = open_checkpoint(write_tiny(tmp_path / "tiny")).spec
    layer, table = matrices(spec)[0], matrices(spec)[-1]
    assert measured_format(layer, 8, "search") == measured_format(layer, 4, "search") == FOUR
    assert (measured_format(table, 4, "search"), measured_format(table, 8, "search")) == (FOUR, EIGHT)
    assert {replace(form, quantizer="search") for form in candidates("round")} == set(candidates("search"))


@pytest.mark.parametrize(
    ("parameters", "tokens"), [(5_841_280, 4096), (354_483_968, 1024), (1_170_340_608, 512), (2_569_272_320, 512)]
)
def test_larger_models_are_measured_on_fewer_tokens(parameters: int, tokens: int) -> None:
    text = [tuple(range(number, number + 512)) for number in range(100)]
    chosen = sequences_for(text, tokens_for(parameters))
    assert sum(len(one) for one in chosen) == tokens and {len(one) for one in chosen} == {LENGTH}
    assert chosen[0][0] == 0 and len(set(chosen)) == len(chosen)
    assert sequences_for(text[:1], tokens) == (text[0][:LENGTH],)
