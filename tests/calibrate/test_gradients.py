"""Gradients of a drawn token's probability by matrices' outputs, against transformers' model and against the Fisher
information by its definition.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lfm2export.calibrate import gradients
from lfm2export.calibrate.activations import Scratch, Sequences, workers
from lfm2export.calibrate.gradients import output_moments
from lfm2export.calibrate.sampled import draw
from lfm2export.checkpoint import Checkpoint, open_checkpoint
from lfm2export.matrices import matrices
from lfm2export.reference.stream import StreamReference
from lfm2export.reference.weights import SourceWeights
from tiny import write_tiny

pytestmark = pytest.mark.usefixtures("one_thread")

LAST = "model.layers.3.feed_forward.w2.weight"


@pytest.fixture(scope="module", params=[False, True], ids=["", "untied and biased"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    return Path(write_tiny(folder, conv_bias=request.param, tie_word_embeddings=not request.param))


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return open_checkpoint(folder)


def sequences(count: int, length: int = 24) -> Sequences:
    rows = np.random.default_rng(3).integers(0, 500, (count, length)).tolist()
    return Sequences.split([tuple(row) for row in rows])


def moments(checkpoint: Checkpoint, text: Sequences, folder: Path, threads: int) -> gradients.OutputMoments:
    folder.mkdir()
    with workers(threads) as pool, torch.no_grad():
        return output_moments(checkpoint, text, Scratch(folder), pool)


def by_transformers(folder: Path, text: Sequences) -> dict[str, list[np.ndarray]]:
    """g [T, N] of every sequence by source tensor: backward hooks on the model itself, the same draws."""
    from transformers import Lfm2ForCausalLM

    model = Lfm2ForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    found: dict[str, list[np.ndarray]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":

            def keep(_: object, __: object, given: tuple[torch.Tensor], name: str = name) -> None:
                found.setdefault(f"{name}.weight", []).append(given[0][0].numpy().copy())

            module.register_full_backward_hook(keep)
    for number, tokens in enumerate(text.tokens):
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0]
        drawn = torch.from_numpy(draw(logits.detach().numpy(), np.random.default_rng((0, number))))
        torch.nn.functional.cross_entropy(logits, drawn, reduction="sum").backward()
    return found


def test_they_are_those_of_transformers(folder: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    text = sequences(9)  # one of them held out
    mine, theirs = moments(checkpoint, text, tmp_path / "scratch", 2), by_transformers(folder, text)
    assert set(theirs) == {part for one in matrices(checkpoint.spec) if one.layer is not None for part in one.parts}
    for name, found in theirs.items():
        fitted, held_out = np.concatenate(found[: text.fitted]), np.concatenate(found[text.fitted :])
        for got, rows in ((mine.fitted(name), fitted), (mine.held_out(name), held_out)):
            wanted = rows.T @ rows / len(rows)
            assert np.abs(wanted).max() > 0
            np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max(), rtol=0, err_msg=name)
        squares = np.square(np.concatenate(found)).sum(axis=1)
        weights = squares / squares[: text.fitted_rows].mean()
        np.testing.assert_allclose(mine.weights([name]), weights, atol=1e-3 * weights.max(), rtol=0, err_msg=name)


def test_threads_change_nothing(checkpoint: Checkpoint, tmp_path: Path) -> None:
    text = sequences(5)
    one, two = (moments(checkpoint, text, tmp_path / str(threads), threads) for threads in (1, 2))
    for name in (LAST, "model.layers.0.conv.in_proj.weight"):
        assert np.array_equal(one.fitted(name), two.fitted(name))


def test_many_draws_come_to_the_fisher_information(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Of the last matrix, whose outputs only their own position's logits depend on: J^T (diag p - p p^T) J."""
    tokens = sequences(1 + 1, 6).tokens[0]
    student = gradients.Student(StreamReference(SourceWeights(checkpoint)), {})
    residual: list[torch.Tensor] = []
    with torch.no_grad():
        student.norm.register_forward_pre_hook(lambda _, inputs: residual.append(inputs[0]))
        student.hidden(tokens)

    def logits(x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = student.norm(x[None, None])[0, 0] @ student.table.mT
        return found

    wanted = np.zeros((residual[0].shape[-1],) * 2)
    for row in residual[0][0]:
        jacobian = torch.autograd.functional.jacobian(logits, row)
        p = torch.softmax(logits(row), dim=-1)
        wanted += (jacobian.mT @ (torch.diag(p) - torch.outer(p, p)) @ jacobian).numpy() / len(tokens)
    text = Sequences((tokens,) * 400 + (tokens,), 400)
    found = moments(checkpoint, text, tmp_path / "scratch", 2).fitted(LAST)
    assert np.linalg.norm(found - wanted) < 0.15 * np.linalg.norm(wanted)
