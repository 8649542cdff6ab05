"""What the model is fed: prompts, and chunks of text, as tokens.

A prompt is rendered with the chat template where the folder has one, else taken as plain text. A folder without a
tokenizer is fed token numbers, drawn once and for all, and has no text to be scored on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lfm2export.errors import PromptError
from lfm2export.spec import ModelSpec
from lfm2export.text.read import TextFile, read_text_file
from lfm2export.text.tokenizer import ChatTokenizer, has_tokenizer

#: (as a conversation?, text): both ways of prompting, several scripts, several lengths.
PROMPTS = (
    (True, "What is the capital of France?"),
    (False, "The module provides functions for reading and writing files. In order to"),
    (True, "Write a short list: three things that a good index needs, and why."),
    (False, "def read_lines(path):\n    with open(path) as file:\n"),
    (True, "Übersetze bitte: 水 is water, вода тоже. 🙂 How many words was that?"),
    (False, ""),
)

#: Prompts of the quick form: a conversation, and plain text.
QUICK = 2

#: Lengths in tokens of prompts without a tokenizer.
BLIND_LENGTHS = (9, 23, 40, 5, 31, 1)

CHUNK = 512
#: Chunks of text by parameters of the model: a large one takes minutes for each.
CHUNKS = ((100_000_000, 16), (1_000_000_000, 8))
FEWEST_CHUNKS = 4


@dataclass(frozen=True)
class Prompt:
    """Tokens to start from; text is None for token numbers alone."""

    name: str
    text: str | None
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Text:
    """Chunks of CHUNK tokens, each starting as the tokenizer starts a text."""

    name: str
    chunks: tuple[tuple[int, ...], ...]


def open_tokenizer(*folders: Path) -> ChatTokenizer | None:
    """The tokenizer of the first of `folders` that has one.

    Raises:
        TokenizerError: it is damaged.
    """
    return next((ChatTokenizer(folder) for folder in folders if has_tokenizer(folder)), None)


def make_prompts(
    tokenizer: ChatTokenizer | None, spec: ModelSpec, given: Sequence[str] | None, *, room: int, quick: bool
) -> tuple[Prompt, ...]:
    """The given prompts, or the built-in ones. `room`: tokens that each must leave free in the context.

    Raises:
        PromptError: given prompts without a tokenizer, an empty one, or one that is too long.
    """
    if given is not None and not given:
        raise PromptError("there is no prompt to verify with; give at least one")
    if tokenizer is None:
        if given is not None:
            raise PromptError("there is no tokenizer.json to read prompts with; put one into the folder, or give none")
        return _blind(spec, quick)
    chosen = [(True, text) for text in given] if given is not None else list(PROMPTS[: QUICK if quick else None])
    prompts = []
    for chat, text in chosen:
        if chat and tokenizer.has_chat_template:
            tokens = tokenizer.encode_chat([{"role": "user", "content": text}])
        else:
            tokens = tokenizer.encode(text)
        name = " ".join(text.split())[:40] or "(nothing but the start)"
        if not tokens and given is None:
            continue  # a tokenizer that puts nothing before a text has no empty prompt
        if not tokens or len(tokens) + room > spec.max_position_embeddings:
            limit = spec.max_position_embeddings - room
            raise PromptError(f"prompt {name!r} has {len(tokens)} tokens, expected 1 to {limit}; change it")
        if max(tokens) >= spec.vocab_size:
            raise PromptError(
                f"the tokenizer gives token {max(tokens)}, the model has {spec.vocab_size}; they do not belong together"
            )
        prompts.append(Prompt(name, text, tuple(tokens)))
    return tuple(prompts)


def _blind(spec: ModelSpec, quick: bool) -> tuple[Prompt, ...]:
    random = np.random.default_rng(0)
    lengths = BLIND_LENGTHS[: QUICK if quick else None]
    return tuple(
        Prompt(f"{length} token numbers", None, tuple(random.integers(0, spec.vocab_size, length).tolist()))
        for length in lengths
    )


def held_out_text() -> TextFile:
    """The text that ships with the package to be scored; no calibration has seen it."""
    from lfm2export.hub import shipped_folder

    found = read_text_file(shipped_folder() / "heldout.txt.xz")
    return replace(found, name=f"shipped {found.name}")


def room_for_text(tokenizer: ChatTokenizer, tokens: Sequence[int], spec: ModelSpec, most: int) -> tuple[list[int], int]:
    """(the start that the tokenizer gives a text, how many of `tokens` fit behind it in a sequence of at most `most`).

    Raises:
        PromptError: the model has no such tokens, or no room behind the start.
    """
    if max(tokens) >= spec.vocab_size:
        raise PromptError(
            f"the tokenizer gives token {max(tokens)}, the model has {spec.vocab_size}; they do not belong together"
        )
    start = tokenizer.encode("")
    body = min(most, spec.max_position_embeddings) - len(start)
    if body < 1:
        raise PromptError(
            f"the tokenizer begins a text with {len(start)} tokens, the model takes {spec.max_position_embeddings}; "
            "there is no room for text"
        )
    return start, body


def make_text(tokenizer: ChatTokenizer, spec: ModelSpec, path: Path | None, chunks: int | None = None) -> Text:
    """Chunks spread evenly over the text; a text of one chunk or less is one chunk.

    chunks: how many at most; None takes what the model's size affords.

    Raises:
        PromptError: the text is too short to be scored, or cannot be read.
    """
    found = read_text_file(path) if path is not None else held_out_text()
    name, text = found.name, found.text
    tokens = tokenizer.encode(text, special=False)
    if len(tokens) < 64:
        raise PromptError(f"{name} has {len(tokens)} tokens, expected at least 64; give a longer text")
    start, body = room_for_text(tokenizer, tokens, spec, CHUNK)
    affordable = next((number for limit, number in CHUNKS if spec.num_parameters < limit), FEWEST_CHUNKS)
    count = chunks if chunks is not None else affordable
    count = max(1, min(count, len(tokens) // body))
    places = np.linspace(0, max(0, len(tokens) - body), count).astype(int).tolist()
    return Text(name, tuple((*start, *tokens[place : place + body]) for place in places))


def long_tokens(text: Text | None, spec: ModelSpec, length: int) -> tuple[int, ...]:
    """`length` tokens, fewer if the context is shorter: the text's chunks over and over, or drawn numbers."""
    length = min(length, spec.max_position_embeddings)
    if text is None:
        return tuple(np.random.default_rng(1).integers(0, spec.vocab_size, length).tolist())
    tokens = [token for chunk in text.chunks for token in chunk]
    return tuple((tokens * -(-length // len(tokens)))[:length])
