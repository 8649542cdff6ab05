"""The reference in both modes: against transformers called plainly, against each other, and its caches by value."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, DynamicCache

from lfm2export import contract
from lfm2export.errors import ConfigError, StepError, TensorError
from lfm2export.reference import Run, chosen_mode, load_reference
from lfm2export.reference.available import available_bytes, give_back
from tiny import write_tiny

pytestmark = pytest.mark.usefixtures("one_thread")

#: Logits reach 13 here. One product with other shapes (the head by parts, or on one row): 2.4e-6 at most, measured.
HEAD = 8e-6
#: Every product with other shapes (prefill against steps, pieces, batches): 7.0e-6 at most, measured.
REORDERED = 3e-5

TOKENS = [3, 141, 59, 26, 53, 58, 97, 93, 238, 46, 264, 338, 327, 95, 0, 288]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    """The model as anyone would load it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.fixture(scope="module", params=["memory", "stream"])
def reference(folder: Path, request: pytest.FixtureRequest) -> Any:
    return load_reference(folder, request.param)


def stepped(reference: Any, prompt: list[int], answer: list[int]) -> list[tuple[np.ndarray, tuple[np.ndarray, ...]]]:
    state = reference.new_state()
    found = []
    for chunk in [prompt, *([token] for token in answer)]:
        logits, state = reference.step(np.array([chunk]), state)
        found.append((logits.copy(), reference.read_caches(state)))
    return found


def test_steps_are_transformers_own_bit_for_bit(reference: Any, theirs: Any) -> None:
    cache = DynamicCache(config=theirs.config)
    found = stepped(reference, TOKENS[:5], TOKENS[5:])
    with torch.no_grad():
        for index, chunk in enumerate([TOKENS[:5], *([token] for token in TOKENS[5:])]):
            expected = theirs(torch.tensor([chunk]), cache=cache, use_cache=True).logits[:, -1:].numpy()
            logits, caches = found[index]
            # The head is evaluated on one row here and on S there, or in parts: another order of summation.
            np.testing.assert_allclose(logits, expected, atol=HEAD, rtol=0)
            for held, tensor in zip(contract.caches(reference.spec, "float32"), caches, strict=True):
                layer = cache.layers[held.layer]
                value = layer.conv_states[0] if held.kind == "conv" else getattr(layer, held.kind + "s")
                assert np.array_equal(tensor, value.numpy()), (index, held.past.name)


def test_cached_steps_equal_a_whole_prefill(reference: Any) -> None:
    last_logits, last_caches = stepped(reference, TOKENS[:1], TOKENS[1:])[-1]
    whole_logits, whole_caches = stepped(reference, TOKENS, [])[-1]
    np.testing.assert_allclose(last_logits, whole_logits, atol=REORDERED, rtol=0)
    for cached, prefilled in zip(last_caches, whole_caches, strict=True):
        np.testing.assert_allclose(cached, prefilled, atol=REORDERED, rtol=0)


@pytest.mark.parametrize("prompt", [1, 2, 3, 7])
def test_a_run_gives_what_the_steps_give(reference: Any, prompt: int) -> None:
    """Also while fewer tokens than L are done: the conv state is then padded with zeros on the left."""
    (trace,) = reference.run([Run.cached(TOKENS[:prompt], TOKENS[prompt:])])
    logits = reference.logits(trace.hidden)
    for index, (expected, caches) in enumerate(stepped(reference, TOKENS[:prompt], TOKENS[prompt:])):
        length = prompt + index
        np.testing.assert_allclose(logits[length - 1], expected[0, 0], atol=HEAD, rtol=0)
        for got, wanted in zip(trace.caches(length), caches, strict=True):
            assert np.array_equal(got, wanted)


def test_both_modes_agree_bit_for_bit_but_for_the_head(folder: Path) -> None:
    runs = [Run.cached(TOKENS[:5], TOKENS[5:]), Run.prefill(TOKENS[::-1]), Run.cached([], TOKENS[:4])]
    memory, stream = load_reference(folder, "memory"), load_reference(folder, "stream")
    for one, other in zip(memory.run(runs), stream.run(runs), strict=True):
        assert np.array_equal(one.hidden, other.hidden)
        for length in range(len(one.run.tokens) + 1):
            for mine, its in zip(one.caches(length), other.caches(length), strict=True):
                assert np.array_equal(mine, its)
        np.testing.assert_allclose(memory.logits(one.hidden), stream.logits(other.hidden), atol=HEAD, rtol=0)


def test_long_inputs_go_in_pieces(reference: Any, theirs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lfm2export.reference import memory, run, stream

    for module in (memory, run, stream):
        monkeypatch.setattr(module, "PIECE", 6)
    logits, state = reference.step(np.array([TOKENS]), reference.new_state())
    (trace,) = reference.run([Run.prefill(TOKENS)])
    with torch.no_grad():
        expected = theirs(torch.tensor([TOKENS])).logits.numpy()
    np.testing.assert_allclose(logits[:, -1], expected[:, -1], atol=REORDERED, rtol=0)
    np.testing.assert_allclose(reference.logits(trace.hidden), expected[0], atol=REORDERED, rtol=0)
    assert state.lengths.tolist() == [len(TOKENS)]


def test_rows_of_equal_length_go_together(reference: Any) -> None:
    rows = np.array([TOKENS[:6], TOKENS[6:12]])
    logits, state = reference.step(rows, reference.new_state(2))
    logits, state = reference.step(rows[:, :1], state)
    for index, row in enumerate(rows.tolist()):
        alone, _ = stepped(reference, row, row[:1])[-1]
        np.testing.assert_allclose(logits[index], alone[0], atol=REORDERED, rtol=0)
    assert state.lengths.tolist() == [7, 7]


def test_other_shapes_agree_too(tmp_path: Path) -> None:
    folder = write_tiny(
        tmp_path / "odd",
        layer_types=["full_attention", "conv"],
        conv_bias=True,
        conv_L_cache=4,
        head_dim=24,
        tie_word_embeddings=False,
        num_key_value_heads=4,
    )
    runs = [Run.cached(TOKENS[:2], TOKENS[2:])]
    memory, stream = load_reference(folder, "memory"), load_reference(folder, "stream")
    ((one,), (other,)) = memory.run(runs), stream.run(runs)
    assert np.array_equal(one.hidden, other.hidden)
    np.testing.assert_allclose(memory.logits(one.hidden), stream.logits(other.hidden), atol=HEAD, rtol=0)
    assert one.caches(3)[2].shape == (1, 64, 4)


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_weights_may_be_replaced_and_rounded(folder: Path, mode: Any) -> None:
    run = [Run.prefill(TOKENS, None)]
    plain = load_reference(folder, mode)
    asked: list[str] = []

    def doubled(name: str, start: int, stop: int) -> np.ndarray | None:
        asked.append(name)
        if not name.endswith("operator_norm.weight"):
            return None
        return 2 * plain_rows(name, start, stop)

    from lfm2export.checkpoint import open_checkpoint

    plain_rows = open_checkpoint(folder).rows
    changed = load_reference(folder, mode, override=doubled)
    before, after = (reference.run(run)[0].hidden for reference in (plain, changed))
    assert np.abs(before - after).max() > 1e-3
    changed.logits(after)
    assert set(asked) == set(plain.spec.source_tensors())
    rounded = load_reference(folder, mode, half=True).run(run)[0].hidden
    assert 0 < np.abs(before - rounded).max() < 0.05

    def misshaped(name: str, start: int, stop: int) -> np.ndarray:
        return np.zeros((1, 1), np.float32)

    with pytest.raises(TensorError, match=r"the replacement of .* has shape \(1, 1\)"):
        load_reference(folder, mode, override=misshaped).run(run)


def test_steps_that_are_no_reference_are_refused(reference: Any) -> None:
    with pytest.raises(StepError, match="the reference takes no padding"):
        reference.step(np.array([[0, 5]]), reference.new_state(), np.array([[0, 1]]))
    with pytest.raises(StepError, match="token 512 is outside the vocabulary"):
        reference.step(np.array([[512]]), reference.new_state())
    with pytest.raises(StepError, match="no tokens"):
        reference.step(np.zeros((1, 0), np.int64), reference.new_state())


def test_caches_that_were_not_kept_are_refused(reference: Any) -> None:
    runs = [Run.prefill(TOKENS, caches_from=10), Run.prefill(TOKENS, None), Run.prefill(TOKENS)]
    late, never, always = reference.run(runs)
    for length in range(10, len(TOKENS) + 1):
        for got, wanted in zip(late.caches(length), always.caches(length), strict=True):
            assert np.array_equal(got, wanted)
    for trace, length in ((late, 9), (never, 3), (always, 17)):
        with pytest.raises(StepError, match="were not kept"):
            trace.caches(length)


def test_before_the_first_token_caches_are_empty(reference: Any) -> None:
    for cache, value in zip(
        contract.caches(reference.spec, "float32"), reference.read_caches(reference.new_state()), strict=True
    ):
        assert not value.any()
        assert value.shape[2] == (3 if cache.kind == "conv" else 0)


def test_a_config_that_transformers_reads_otherwise_is_refused(folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    del config["norm_eps"]
    (copy / "config.json").write_text(json.dumps(config | {"block_norm_eps": 1e-3}))
    with pytest.raises(ConfigError, match=r"transformers takes norm_eps as 1e-05, the export as 0\.001"):
        load_reference(copy, "memory")


def test_fields_that_are_not_the_architectures_are_not_handed_to_transformers(folder: Path, tmp_path: Path) -> None:
    """Some of them choose code, others end in transformers' own type errors."""
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    odd = {
        "_attn_implementation": "someone/kernel",
        "attn_implementation": "someone/kernel",
        "auto_map": {"AutoModelForCausalLM": "someone/else--modeling.Model"},
        "dtype": "no_such_type",
        "eos_token_id": "seven",
        "initializer_range": "x",
        "pad_token_id": 10**9,
        "use_cache": [],
    }
    (copy / "config.json").write_text(json.dumps(config | odd))
    read = load_reference(copy, "memory").config
    assert read._attn_implementation == "eager" and read.pad_token_id == 0
    assert not hasattr(read, "auto_map")


@given(st.integers(1, 2000), st.integers(0, 40))
def test_pieces_cover_the_run_in_order(prompt: int, answer: int) -> None:
    pieces = Run.cached([1] * prompt, [1] * answer).pieces()
    assert [start for start, _ in pieces] == [0, *(stop for _, stop in pieces[:-1])]
    assert pieces[-1][1] == prompt + answer
    assert all(0 < stop - start <= 512 for start, stop in pieces)
    assert all(stop - start == 1 for start, stop in pieces if start >= prompt)


def test_a_run_must_add_up() -> None:
    for tokens, chunks in (((1, 2), (1,)), ((), ()), ((1, 2), (2, 0))):
        with pytest.raises(StepError, match="do not make up"):
            Run(tokens, chunks)


def test_the_mode_follows_the_room() -> None:
    assert chosen_mode(10, "auto", limit=40) == "memory"
    assert chosen_mode(11, "auto", limit=40) == "stream"
    assert chosen_mode(11, "memory", limit=40) == "memory"
    assert chosen_mode(1 << 50) == "stream"
    assert available_bytes() > 1 << 20


def test_memory_is_given_back_or_kept_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    library = SimpleNamespace(malloc_trim=calls.append)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    give_back()
    assert calls == [0]
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())  # another C library
    give_back()
    assert calls == [0]
