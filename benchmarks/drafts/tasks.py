"""Prompts with their answers, and two ways of cutting them into tokens.

No released tokenizer is at hand. The shipped one of 3,072 tokens cuts finer than LFM2's, whole words and signs cut
coarser: what LFM2's 65,536 tokens give lies between.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lfm2export.hub import shipped_folder
from lfm2export.text.tokenizer import ChatTokenizer
from lfm2export.verify.prompts import held_out_text

Encode = Callable[[str], list[int]]

TEXTS = Path(__file__).parent / "texts"
BREAK = "\n=====\n"

#: Words with the space before them, line breaks with their indentation, signs.
WORD = re.compile(r" ?\w+|\n *|[^\w\s]|\s")

KINDS = ("copies", "free", "page")

#: Places in the held-out manual pages, and characters of prompt and answer there.
PAGES = (0, 60_000, 120_000)
PAGE_PROMPT, PAGE_ANSWER = 2000, 1200


@dataclass(frozen=True)
class Task:
    """kind: "copies" much of its prompt, is written "free", or is the rest of a manual "page"."""

    name: str
    kind: str
    prompt: str
    answer: str


def tasks() -> list[Task]:
    """Every text of the folder, and pieces of the held-out pages."""
    found = []
    for path in sorted(TEXTS.glob("*.txt")):
        prompt, answer = path.read_text(encoding="utf-8").split(BREAK)
        kind = "free" if path.stem.startswith("free") else "copies"
        found.append(Task(path.stem.replace("_", " "), kind, prompt, answer))
    pages = held_out_text().text
    for number, start in enumerate(PAGES, start=1):
        middle = start + PAGE_PROMPT
        found.append(Task(f"page {number}", "page", pages[start:middle], pages[middle : middle + PAGE_ANSWER]))
    return sorted(found, key=lambda task: KINDS.index(task.kind))


def encoders() -> dict[str, Encode]:
    """How texts become tokens: by the shipped tokenizer, or a token for each word and sign."""
    shipped = ChatTokenizer(shipped_folder())
    known: dict[str, int] = {}
    return {
        "pieces": lambda text: shipped.encode(text, special=False),
        "words": lambda text: [known.setdefault(word, len(known)) for word in WORD.findall(text)],
    }
