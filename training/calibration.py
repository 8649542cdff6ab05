"""Write the calibration text that ships with the package: conversations, code, prose in eight languages, manuals.

Half of it is the project's own (`calibration/`), the rest conversations from `chat.py`'s tables and excerpts of the
manuals that the shipped model was trained on. None of it is held out, and nothing that shares :data:`LONG` words in a
row with the held-out text is taken: a text that scores a quantized model must be new to its calibration.
"""

from __future__ import annotations

import argparse
import json
import lzma
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

import card
import chat

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "lfm2export"
LONG = 12
SEED = 11
MANUAL_TOKENS, CHAT_TOKENS = 14_000, 6_000
"""In tokens of the shipped model, to about 48,000 together with the project's own."""
EXCERPT = (900, 1800)
"""Characters of an excerpt: long enough for context to matter, short enough for many manuals to have their say."""
CHATS = ((chat.entry_chat, 30), (chat.fact_chat, 30), (chat.long_chat, 25), (chat.translated_chat, 15))
"""No tool calls: their definitions are in held-out conversations. `calibration/conversations.jsonl` has others."""

Entry = dict[str, Any]


def word_runs(text: str, length: int = LONG) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def own_documents(path: Path) -> Iterator[Entry]:
    for text in path.read_text(encoding="utf-8").split("\n%%\n"):
        yield {"text": text.strip("\n")}


def own_conversations(path: Path) -> Iterator[Entry]:
    for line in path.read_text(encoding="utf-8").splitlines():
        yield json.loads(line)


def parsed(rendered: str) -> Entry:
    """The messages of a conversation that `chat.render` wrote without tools."""
    found = re.findall(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>\n", rendered, re.S)
    return {"messages": [{"role": role, "content": content} for role, content in found]}


def generated_conversations(entries: list[dict[str, str]], rng: random.Random) -> Iterator[Entry]:
    makers, weights = zip(*CHATS, strict=True)
    while True:
        rendered = rng.choices(makers, weights)[0](rng, entries)
        if not chat.is_held_out(rendered):
            yield parsed(rendered)


def excerpts(documents: list[dict[str, str]], rng: random.Random) -> Iterator[Entry]:
    """Whole paragraphs from somewhere in a document, the three manuals in turn."""
    manuals: dict[str, list[dict[str, str]]] = {}
    for document in documents:
        manuals.setdefault(document["name"].split("/")[0], []).append(document)
    for of_manual in manuals.values():
        rng.shuffle(of_manual)
    for row in zip(*manuals.values(), strict=False):
        for document in row:
            paragraphs = document["text"].split("\n\n")
            first = rng.randrange(max(1, len(paragraphs) - 6))
            taken = ""
            for paragraph in paragraphs[first:]:
                if len(taken) + len(paragraph) > EXCERPT[1]:
                    break
                taken = f"{taken}\n\n{paragraph}".strip("\n")
            if len(taken) >= EXCERPT[0]:
                yield {"text": taken}


def content(entry: Entry) -> str:
    """All that is said in an entry, and its tool definitions."""
    if "text" in entry:
        return str(entry["text"])
    said = [message["content"] for message in entry["messages"]]
    return "\n".join([*said, json.dumps(entry.get("tools", ""), ensure_ascii=False)])


def up_to(entries: Iterator[Entry], tokens: int, tokenizer: Tokenizer, banned: set[tuple[str, ...]]) -> list[Entry]:
    """The first entries that share no run of words with the held-out text, to `tokens` tokens."""
    kept: list[Entry] = []
    for entry in entries:
        if tokens <= 0:
            break
        if not word_runs(content(entry)) & banned:
            kept.append(entry)
            tokens -= len(tokenizer.encode(content(entry)).ids)
    return kept


def interleaved(groups: list[list[Entry]]) -> list[Entry]:
    """All entries, each group spread evenly, so that a prefix has about the mix of the whole."""
    placed = [((i + 0.5) / len(group), g, i) for g, group in enumerate(groups) for i in range(len(group))]
    return [groups[g][i] for _, g, i in sorted(placed)]


def write_calibration(cache: Path, out: Path) -> None:
    tokenizer = Tokenizer.from_file(str(PACKAGE / "shipped" / "tokenizer.json"))
    banned = word_runs("\n".join(card.read_heldout(PACKAGE / "shipped")))
    own = [
        list(own_conversations(HERE / "calibration" / "conversations.jsonl")),
        list(own_documents(HERE / "calibration" / "code.txt")),
        *(list(own_documents(path)) for path in sorted((HERE / "calibration" / "prose").iterdir())),
    ]
    for entry in [entry for group in own for entry in group]:
        if shared := word_runs(content(entry)) & banned:
            raise SystemExit(f"shares {' '.join(min(shared))!r} with the held-out text; write it otherwise")
    rng = random.Random(SEED)
    documents, entries = (
        [json.loads(line) for line in (cache / name).read_text(encoding="utf-8").splitlines()]
        for name in ("train.jsonl", "entries.jsonl")
    )
    for group in own:
        rng.shuffle(group)
    manuals = up_to(excerpts(documents, rng), MANUAL_TOKENS, tokenizer, banned)
    chats = up_to(generated_conversations(entries, rng), CHAT_TOKENS, tokenizer, banned)
    rows = interleaved([*own, manuals, chats])
    with lzma.open(out, "wb", preset=9) as file:
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    print(f"{out}: {len(rows)} entries, {sum(len(tokenizer.encode(content(row)).ids) for row in rows):,} tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=HERE / "cache", help="what corpus.py wrote")
    parser.add_argument("--out", type=Path, default=PACKAGE / "calibrate" / "calibration.jsonl.xz")
    options = parser.parse_args()
    write_calibration(options.cache, options.out)


if __name__ == "__main__":
    main()
