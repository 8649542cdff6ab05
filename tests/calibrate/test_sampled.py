"""Text that the model writes itself: its form, its distribution, its seed, and both kinds of reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lfm2export import measures
from lfm2export.calibrate.sampled import draw, openings, self_text
from lfm2export.calibrate.source import open_text
from lfm2export.checkpoint import open_checkpoint
from lfm2export.errors import PromptError
from lfm2export.hub import shipped_folder
from lfm2export.progress import silent
from lfm2export.recipes import Calibration
from lfm2export.reference import load_reference, torch_threads
from lfm2export.reference.memory import MemoryReference
from lfm2export.text.tokenizer import ChatTokenizer
from tiny import edit_json, write_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny", max_position_embeddings=24)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> ChatTokenizer:
    return ChatTokenizer(folder)


def test_tokens_are_drawn_by_their_probability() -> None:
    logits = np.log(np.array([0.6, 0.3, 0.1, 1e-9], np.float32))
    counts = np.bincount(draw(np.tile(logits, (20_000, 1)), np.random.default_rng(3)), minlength=4)
    # Five standard deviations of a binomial of 20,000.
    np.testing.assert_allclose(counts / 20_000, [0.6, 0.3, 0.1, 0], atol=0.018)


def test_a_token_that_cannot_be_is_never_drawn() -> None:
    logits = np.array([[0.0, -np.inf, 0.0]] * 500, np.float32)
    assert set(draw(logits, np.random.default_rng(0)).tolist()) == {0, 2}


def test_half_starts_as_a_text_and_half_as_a_users_message(folder: Path, tokenizer: ChatTokenizer) -> None:
    user = tuple(tokenizer.encode("<|startoftext|><|im_start|>user\n", special=False))
    assert openings(tokenizer) == [(1,), user]
    found = self_text(load_reference(folder, "memory"), tokenizer, 24 * 6).sequences
    assert len(found) == 6 and all(len(sequence) == 24 and sequence[0] == 1 for sequence in found)
    assert [sequence[: len(user)] == user for sequence in found] == [False] * 3 + [True] * 3


def test_a_tokenizer_without_a_template_starts_every_text_alike(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "tiny", max_position_embeddings=12)
    (folder / "chat_template.jinja").unlink()
    assert openings(ChatTokenizer(folder)) == [(1,)]


def test_the_start_comes_from_the_config_where_the_tokenizer_puts_none(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "tiny", max_position_embeddings=24)
    edit_json(folder / "tokenizer.json", post_processor=None)
    checkpoint = open_checkpoint(folder)
    found = open_text(checkpoint, Calibration("self", 1024))(silent)
    assert len(found.sequences) == 42 and all(sequence[0] == 1 for sequence in found.sequences)
    for name in ("config.json", "generation_config.json"):
        edit_json(folder / name, bos_token_id=None)
    edit_json(folder / "tokenizer_config.json", bos_token=None)
    with pytest.raises(PromptError, match="no file names a bos_token_id"):
        open_text(open_checkpoint(folder), Calibration("self", 1024))


def test_the_seed_decides(folder: Path, tokenizer: ChatTokenizer) -> None:
    reference = load_reference(folder, "memory")
    first = self_text(reference, tokenizer, 200, seed=1)
    assert first == self_text(reference, tokenizer, 200, seed=1)
    assert first.sequences != self_text(reference, tokenizer, 200, seed=2).sequences
    assert len(set(first.sequences)) == len(first.sequences)


def test_streamed_from_disk_it_is_the_same(folder: Path, tokenizer: ChatTokenizer) -> None:
    whole, streamed = (load_reference(folder, mode) for mode in ("memory", "stream"))
    assert self_text(whole, tokenizer, 100) == self_text(streamed, tokenizer, 100)


def test_it_is_what_the_model_expects_to_read() -> None:
    """The mean surprise of sampled tokens is the entropy of their distributions, where other text surprises more."""
    reference, tokenizer = load_reference(shipped_folder(), "memory"), ChatTokenizer(shipped_folder())
    assert isinstance(reference, MemoryReference)
    with torch_threads(1), torch.no_grad():
        rows = torch.tensor(self_text(reference, tokenizer, 8 * 256).sequences)
        logits = reference.model(rows).logits[:, 8:-1].numpy()
    log_p = measures.log_softmax(logits)
    surprise = -np.take_along_axis(log_p, rows[:, 9:, None].numpy(), -1)
    entropy = -(np.exp(log_p) * log_p).sum(-1)
    # 8 x 247 tokens with a spread of 2 to 3 nats: a standard error of .06.
    assert surprise.mean() == pytest.approx(entropy.mean(), abs=0.3)
