"""The token sequences that calibration reads: the text that ships with the package, or a file's.

The shipped text is JSON lines, either `{"text": ...}` or `{"messages": [...], "tools": [...]}`: prose in the eight
languages of LFM2's model card, code, excerpts of manuals, conversations with and without tool calls. Conversations go
through the checkpoint's own chat template, so they look as the model knows them. Any prefix has about the mix of the
whole. It is written by `training/calibration.py`, and shares no long run of words with the held-out text that `verify`
scores.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfm2export.errors import PromptError
from lfm2export.spec import ModelSpec
from lfm2export.text.read import read_text_file
from lfm2export.text.tokenizer import ChatTokenizer
from lfm2export.verify.prompts import held_out_text, room_for_text

SHIPPED = Path(__file__).parent / "calibration.jsonl.xz"

#: Tokens of a sequence, its start included; what `verify` scores has the same length.
LENGTH = 512

#: Least tokens that say anything about a matrix of a few hundred columns.
FEWEST = 1024


@dataclass(frozen=True)
class CalibrationText:
    """name: where it comes from, for reports. sequences: at most LENGTH tokens each, every one with its start.

    sha256: of the file; None for text of the model's own.
    """

    name: str
    sequences: tuple[tuple[int, ...], ...]
    sha256: str | None = None

    @property
    def tokens(self) -> int:
        return sum(len(sequence) for sequence in self.sequences)


def shipped_text(tokenizer: ChatTokenizer, spec: ModelSpec, tokens: int | None = None) -> CalibrationText:
    """The first `tokens` tokens of the shipped text, by default all of it.

    Raises:
        PromptError: the tokenizer does not belong to the model.
    """
    stream: list[int] = []
    for document in _encoded(tokenizer, _shipped_entries()):
        stream += document
        if tokens is not None and len(stream) >= tokens:
            break
    return CalibrationText("shipped", _cut(stream, tokenizer, spec, tokens), _shipped_sha256())


def file_text(path: Path, tokenizer: ChatTokenizer, spec: ModelSpec, tokens: int | None = None) -> CalibrationText:
    """`tokens` tokens of a UTF-8 file, perhaps .xz, in sequences spread evenly over it; by default all of it.

    Special tokens are read as such, so that a file may hold rendered conversations.

    Raises:
        PromptError: the file cannot be read, is too short, is the held-out text, or the tokenizer does not belong to
            the model.
    """
    file = read_text_file(path)
    if file.text == held_out_text().text:
        raise PromptError(f"{path} is the held-out text that verify scores; calibrate on another one")
    found = tokenizer.encode(file.text, special=False)
    if len(found) < FEWEST:
        raise PromptError(f"{path} has {len(found)} tokens, expected at least {FEWEST}; give a longer text")
    sequences = _cut(found, tokenizer, spec, None)
    if tokens is not None and tokens < len(found):
        count = max(1, tokens // len(sequences[0]))
        sequences = tuple(sequences[i * len(sequences) // count] for i in range(count))
    return CalibrationText(file.name, sequences, file.sha256)


def _shipped_entries() -> Iterator[Mapping[str, Any]]:
    with lzma.open(SHIPPED, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _shipped_sha256() -> str:
    return hashlib.sha256(SHIPPED.read_bytes()).hexdigest()


def _encoded(tokenizer: ChatTokenizer, entries: Iterable[Mapping[str, Any]]) -> Iterator[list[int]]:
    """Each entry with its special tokens; conversations that a chat template refuses, or without one, are left out."""
    for entry in entries:
        if "text" in entry:
            yield tokenizer.encode(entry["text"])
        elif tokenizer.has_chat_template:
            try:
                rendered = tokenizer.render(entry["messages"], tools=entry.get("tools"), add_generation_prompt=False)
            except PromptError:
                continue  # a template without a system or a tool role
            yield tokenizer.encode(rendered, special=False)


def _cut(
    stream: list[int], tokenizer: ChatTokenizer, spec: ModelSpec, tokens: int | None
) -> tuple[tuple[int, ...], ...]:
    """Sequences of equal length, each with the start that the tokenizer gives a text; a rest is left out."""
    start, body = room_for_text(tokenizer, stream, spec, LENGTH)
    length = len(start) + body
    count = max(1, len(stream) // body)
    if tokens is not None:
        count = max(1, min(count, tokens // length))
    return tuple((*start, *stream[i * body : (i + 1) * body]) for i in range(count))
