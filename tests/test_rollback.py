"""Tokens fed on trial and taken back: the state is that of the tokens that stayed, fed one by one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfm2export.contract import LogitsMode
from lfm2export.errors import StepError
from lfm2export.rollback import conv_state_after, from_end
from lfm2export.runtime import BufferedModel, OnnxModel
from standin import write_standin

#: float32 through a tiny model: the order of summation.
TOLERANCE = 2e-5

PROMPT = [3, 17, 5, 11, 2, 8, 9]
WRONG = [30, 21, 4]


@pytest.mark.parametrize("length", [3, 4, 7])
def test_every_state_in_between_is_in_past_and_present(length: int) -> None:
    columns = np.random.default_rng(0).standard_normal((1, 2, 2 * length))
    past = columns[:, :, :length]
    for width in range(1, length + 1):
        present = columns[:, :, width : width + length]
        for count in range(1, width + 1):
            assert np.array_equal(conv_state_after(past, present, width, count), columns[:, :, count : count + length])


def test_tokens_from_the_end_are_named_in_their_order() -> None:
    assert from_end(1).tolist() == [0] and from_end(3).tolist() == [2, 1, 0]


@pytest.mark.parametrize("buffered", [False, True], ids=["by value", "in buffers"])
@pytest.mark.parametrize(("dtype", "logits"), [("fp32", "last"), ("fp32", "all"), ("q8", "last"), ("q4", "last")])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_what_stays_is_as_if_fed_one_by_one(
    tiny_artifact: Callable[[LogitsMode], Path], dtype: str, logits: LogitsMode, buffered: bool, count: int
) -> None:
    plain = OnnxModel(tiny_artifact(logits), dtype, threads=1)
    assert plain.max_drafts == plain.spec.conv_L_cache - 1 == 2
    answer = [12, 7, 25]
    _, state = plain.step(np.array([PROMPT]), plain.new_state())
    wanted = []
    for token in answer[:count]:
        row, state = plain.step(np.array([[token]]), state)
        wanted.append(row[0, -1])
    following, after = plain.step(np.array([[14]]), state)

    loop: Any = BufferedModel(plain) if buffered else plain
    _, held = loop.step(np.array([PROMPT]), loop.new_state())
    found, keep = loop.speculate(np.array([[*answer[:count], *WRONG[: 3 - count]]]), held)
    np.testing.assert_allclose(found[0, :count], wanted, atol=TOLERANCE, rtol=0)
    held = keep(count)
    assert held.lengths.tolist() == [len(PROMPT) + count]
    for theirs, mine in zip(plain.read_caches(state), loop.read_caches(held), strict=True):
        own = mine if mine.ndim == 3 else mine[:, :, : theirs.shape[2]]
        np.testing.assert_allclose(own, theirs, atol=TOLERANCE, rtol=0)
    got, held = loop.step(np.array([[14]]), held)
    np.testing.assert_allclose(got, following, atol=TOLERANCE, rtol=0)
    for theirs, mine in zip(plain.read_caches(after), loop.read_caches(held), strict=True):
        own = mine if mine.ndim == 3 else mine[:, :, : theirs.shape[2]]
        np.testing.assert_allclose(own, theirs, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("buffered", [False, True], ids=["by value", "in buffers"])
def test_a_step_whose_count_is_never_said_changes_nothing(
    tiny_artifact: Callable[[LogitsMode], Path], buffered: bool
) -> None:
    model = OnnxModel(tiny_artifact("last"), "fp32", threads=1)
    loop: Any = BufferedModel(model) if buffered else model
    _, state = loop.step(np.array([PROMPT]), loop.new_state())
    loop.speculate(np.array([WRONG]), state)
    got, state = loop.step(np.array([[12]]), state)
    _, fresh = model.step(np.array([PROMPT]), model.new_state())
    expected, _ = model.step(np.array([[12]]), fresh)
    assert np.array_equal(got, expected)


def test_what_cannot_be_taken_back_is_refused(tiny_artifact: Callable[[LogitsMode], Path], tmp_path: Path) -> None:
    model = OnnxModel(tiny_artifact("last"), "fp32", threads=1)
    for loop in (model, BufferedModel(model)):
        with pytest.raises(StepError, match="got 4 tokens, expected 1 to 3"):
            loop.speculate(np.array([[1, 2, 3, 4]]), loop.new_state())  # type: ignore[arg-type]
        with pytest.raises(StepError, match="got 2 rows, expected 1"):
            loop.speculate(np.array([[1, 2], [3, 4]]), loop.new_state(2))  # type: ignore[arg-type]


def test_a_file_that_gives_the_last_token_s_logits_alone_takes_no_drafts(tmp_path: Path) -> None:
    assert OnnxModel(write_standin(tmp_path / "last", logits="last")).max_drafts == 0
    assert OnnxModel(write_standin(tmp_path / "all", logits="all")).max_drafts == 2


@pytest.mark.parametrize("dtype", ["fp32", "q8", "q4"])
def test_only_who_asks_for_it_gets_more_than_the_last_token(
    tiny_artifact: Callable[[LogitsMode], Path], dtype: str
) -> None:
    """The contract as others see it: no input more to feed, one row of logits stated and given."""
    model = OnnxModel(tiny_artifact("last"), dtype, threads=1)
    names = [value.name for value in model.session.get_inputs()]
    assert names == [tensor.name for tensor in model.contract.inputs]
    assert [value.name for value in model.session.get_overridable_initializers()] == ["logits_from_end"]
    assert model.session.get_outputs()[0].shape == ["batch_size", 1, model.spec.vocab_size]
    last, _ = model.step(np.array([PROMPT]), model.new_state())
    every, _ = model.speculate(np.array([PROMPT[:3]]), model.new_state())
    assert last.shape[1] == 1 and every.shape[1] == 3


def test_short_rows_give_their_first_token_for_what_they_do_not_have(
    tiny_artifact: Callable[[LogitsMode], Path],
) -> None:
    """A padded batch may ask for several tokens of each row; a row that is shorter repeats its first one's logits."""
    model = OnnxModel(tiny_artifact("last"), "fp32", threads=1)
    every = OnnxModel(tiny_artifact("all"), "fp32", threads=1)
    ids, mask = np.array([[3, 17, 5], [9, 0, 0]]), np.array([[1, 1, 1], [1, 0, 0]])
    feeds, _ = model._feeds(ids, model.new_state(2), mask)
    (found,) = model.session.run(["logits"], feeds | {"logits_from_end": from_end(3)})
    wanted, _ = every.step(ids, every.new_state(2), mask)
    np.testing.assert_allclose(found[0], wanted[0], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(found[1], wanted[1, [0, 0, 0]], atol=TOLERANCE, rtol=0)
