"""Calibration text that the model writes itself: what it says is what its matrices see in use.

Half of the sequences start from the start token alone, half where the chat template lets a user begin to speak, at
temperature 1, without a filter: the model's own distribution, rare tokens included. All rows of a half grow together,
one token a step, on the reference's cache. A step reads every weight once, from memory or (streamed) from disk, and
16,384 tokens take 255 steps for each half: 15 seconds of one core for the shipped model, and at full size as long as
reading the checkpoint 510 times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from lfm2export.calibrate.text import CalibrationText
from lfm2export.errors import PromptError
from lfm2export.progress import Progress, silent
from lfm2export.spec import ModelSpec
from lfm2export.steps import Logits, Tokens
from lfm2export.text.tokenizer import ChatTokenizer

State = TypeVar("State")

#: Tokens of a sampled sequence: half of what a text gives, because a step costs the same for more rows.
LENGTH = 256
TOKENS = 16_384


class Model(Protocol[State]):
    """The part of the reference that is needed here."""

    @property
    def spec(self) -> ModelSpec: ...

    def new_state(self, batch: int = 1) -> State: ...

    def step(self, tokens: Tokens, state: State) -> tuple[Logits, State]: ...


def self_text(
    model: Model[State],
    tokenizer: ChatTokenizer,
    tokens: int = TOKENS,
    *,
    bos: int | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> CalibrationText:
    """About `tokens` tokens sampled from `model`; equal seeds give equal tokens on one machine.

    bos: what begins a text where the tokenizer itself puts nothing before one.

    Raises:
        PromptError: there is no token to start from.
    """
    length = min(LENGTH, model.spec.max_position_embeddings)
    starts = openings(tokenizer, bos)
    rows = max(1, tokens // (length * len(starts)))
    random = np.random.default_rng(seed)
    steps = sum(max(0, length - len(start)) for start in starts)
    sequences: list[tuple[int, ...]] = []
    for number, start in enumerate(starts):
        before = sum(max(0, length - len(one)) for one in starts[:number])

        def listen(done: int, before: int = before) -> None:
            progress("sample", before + done, steps, "tokens a row")

        sequences += _grow(model, start, rows, length, random, listen)
    return CalibrationText(f"self, seed {seed}", tuple(sequences))


def openings(tokenizer: ChatTokenizer, bos: int | None = None) -> list[tuple[int, ...]]:
    """The start of any text, and, with a chat template, the start of a user's message.

    The latter is what two conversations that differ in their first word have in common.
    """
    start = tuple(tokenizer.encode("")) or (() if bos is None else (bos,))
    if not start:
        raise PromptError(
            "the tokenizer puts no token before a text, and no file names a bos_token_id; add it to config.json, or "
            "calibrate on a file instead"
        )
    if not tokenizer.has_chat_template:
        return [start]
    first, second = (tokenizer.encode_chat([{"role": "user", "content": word}]) for word in ("A", "1"))
    common = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), 0)
    opening = tuple(first[:common])
    return [start, opening] if len(opening) > len(start) else [start]


def _grow(
    model: Model[State],
    start: tuple[int, ...],
    rows: int,
    length: int,
    random: np.random.Generator,
    listen: Callable[[int], None],
) -> list[tuple[int, ...]]:
    """`rows` sequences of `length` tokens that begin with `start`."""
    grown = np.tile(np.array(start, np.int64), (rows, 1))
    state = model.new_state(rows)
    new = grown
    while grown.shape[1] < length:
        listen(grown.shape[1] - len(start))
        logits, state = model.step(new, state)
        new = draw(logits[:, -1], random)[:, None]
        grown = np.concatenate([grown, new], axis=1)
    return [tuple(row) for row in grown[:, :length].tolist()]


def draw(logits: Logits, random: np.random.Generator) -> NDArray[np.int64]:
    """One token for each row of `logits` [B, V], by its probability: the Gumbel-max trick.

    argmax(logits + G) with G = -log(-log(U)) has the distribution softmax(logits), and no sum to go wrong in its tail.
    """
    uniform = random.random(logits.shape)
    noise = -np.log(-np.log(np.clip(uniform, np.finfo(np.float64).tiny, None)))
    tokens: NDArray[np.int64] = (logits.astype(np.float64) + noise).argmax(axis=-1)
    return tokens
