"""Scales of int8 keys and values: what they are made of, and that neither threads nor positions matter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lfm2export.calibrate import caches
from lfm2export.calibrate.caches import HEADROOM, largest, measure_kv_scales
from lfm2export.calibrate.text import shipped_text
from lfm2export.checkpoint import open_checkpoint
from lfm2export.errors import TokenizerError
from lfm2export.reference.memory import MemoryReference
from lfm2export.reference.run import Run
from lfm2export.reference.weights import SourceWeights
from lfm2export.text.tokenizer import ChatTokenizer
from tiny import write_tiny


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "TOKENS", 1024)


def test_they_are_the_largest_of_the_text(tiny_source: Path) -> None:
    """As the model in memory has them, which shares no loop over layers with what measures."""
    checkpoint = open_checkpoint(tiny_source)
    found = measure_kv_scales(checkpoint, 1)
    text = shipped_text(ChatTokenizer(tiny_source), checkpoint.spec, 1024)
    assert (found.text, found.tokens, found.text_sha256) == ("shipped", 1024, text.sha256)
    runs = [Run.prefill(sequence, caches_from=0) for sequence in text.sequences]
    traces = MemoryReference(SourceWeights(checkpoint)).run(runs)
    assert list(found.layers) == list(checkpoint.spec.attention_layers)
    for layer, held in found.layers.items():
        values = np.max([np.abs(trace.values[layer]).max(axis=(0, 2)) for trace in traces], axis=0)
        np.testing.assert_allclose(held.value, values * HEADROOM / 127, rtol=1e-4)
        keys = np.concatenate([trace.keys[layer][0] for trace in traces], axis=1)
        half = keys.shape[-1] // 2
        pairs = np.hypot(keys[..., :half], keys[..., half:]).max(axis=1)
        np.testing.assert_allclose(held.key, np.tile(pairs, 2) * HEADROOM / 127, rtol=1e-4)


def test_any_number_of_threads_gives_the_same_bytes(tiny_source: Path) -> None:
    checkpoint = open_checkpoint(tiny_source)
    one, three = (measure_kv_scales(checkpoint, threads) for threads in (1, 3))
    for layer, held in one.layers.items():
        np.testing.assert_array_equal(held.key, three.layers[layer].key)
        np.testing.assert_array_equal(held.value, three.layers[layer].value)


def test_a_key_may_be_rotated_by_any_angle() -> None:
    """A later position turns the pairs of a key's channels, and reaches no further than the scale says."""
    keys = np.random.default_rng(0).normal(size=(1, 2, 5, 8)).astype(np.float32)
    limit, _ = largest(keys, keys)
    for angle in np.linspace(0, 6, 13):
        first, second = keys[..., :4], keys[..., 4:]
        turned = np.concatenate([first * np.cos(angle) - second * np.sin(angle),
                                 second * np.cos(angle) + first * np.sin(angle)], axis=-1)  # fmt: skip
        assert (np.abs(turned[0]).max(axis=1) <= limit * (1 + 1e-6)).all()


def test_without_a_tokenizer_there_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError):
        measure_kv_scales(open_checkpoint(write_tiny(tmp_path / "bare", tokenizer=False)), 1)
