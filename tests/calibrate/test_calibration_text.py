"""The calibration text: its mix, its form, that it is not the text that is scored, and files in its place."""

from __future__ import annotations

import lzma
import re
from dataclasses import replace
from pathlib import Path

import pytest

from lfm2export.calibrate.text import (
    FEWEST,
    LENGTH,
    SHIPPED,
    _shipped_entries,
    file_text,
    shipped_text,
)
from lfm2export.checkpoint import open_checkpoint
from lfm2export.errors import PromptError
from lfm2export.hub import shipped_folder
from lfm2export.spec import ModelSpec
from lfm2export.text.tokenizer import ChatTokenizer
from lfm2export.verify.prompts import held_out_text
from tiny import TEXT, write_tiny

#: So many words in a row are a copy, not a coincidence; the same for letters of a script without spaces.
WORDS, LETTERS = 12, 24

SCRIPTS = {"Arabic": r"[؀-ۿ]", "Chinese": r"[一-鿿]", "Japanese": r"[ぁ-ヿ]", "Korean": r"[가-힣]"}
COMMON_WORDS = {"English": "the", "French": "les", "German": "und", "Spanish": "los"}
TOOL_TOKENS = range(8, 14)


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    return ChatTokenizer(shipped_folder())


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return open_checkpoint(shipped_folder()).spec


@pytest.fixture(scope="module")
def shipped() -> str:
    return lzma.decompress(SHIPPED.read_bytes()).decode("utf-8")


def runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    found = {tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)}
    # One "word" of \w is a whole clause in Chinese and Japanese.
    long = [word for word in words if not word.isascii()]  # a long identifier is no copy
    return found | {tuple(word[i : i + LETTERS]) for word in long for i in range(len(word) - LETTERS + 1)}


def everything() -> str:
    said = []
    for entry in _shipped_entries():
        messages = entry.get("messages", [])
        said += [entry.get("text", ""), *(message["content"] for message in messages), str(entry.get("tools", ""))]
    return "\n".join(said)


def test_it_shares_no_run_of_words_with_the_text_that_is_scored() -> None:
    shared = runs(everything()) & runs(held_out_text().text)
    assert not shared, min(shared)


def test_the_overlap_test_finds_a_copied_sentence() -> None:
    held_out = held_out_text().text
    words = re.findall(r"\w+", held_out)
    assert runs("Before. " + " ".join(words[5000 : 5000 + WORDS]) + " after.") & runs(held_out)


def test_it_covers_tools_code_and_the_cards_languages() -> None:
    entries = list(_shipped_entries())
    text = everything()
    for language, letters in SCRIPTS.items():
        assert len(re.findall(letters, text)) > 400, language
    for language, word in COMMON_WORDS.items():
        assert len(re.findall(rf"\b{word}\b", text)) > 5, language
    for fence in ("python", "javascript", "typescript", "rust", "go", "c", "java", "sql", "bash", "html", "json"):
        assert f"```{fence}\n" in text
    with_tools = [entry for entry in entries if entry.get("tools")]
    assert len(with_tools) >= 10 and all("<|tool_call_start|>[" in str(entry["messages"]) for entry in with_tools)
    assert sum("messages" in entry for entry in entries) >= 60


def test_entries_are_well_formed() -> None:
    for entry in _shipped_entries():
        assert set(entry) in ({"text"}, {"messages"}, {"messages", "tools"})
        roles = [message["role"] for message in entry.get("messages", [])]
        assert set(roles) <= {"system", "user", "assistant", "tool"}
        assert not roles or (roles[-1] == "assistant" and "user" in roles)


def test_sequences_of_the_shipped_model(tokenizer: ChatTokenizer, spec: ModelSpec) -> None:
    found = shipped_text(tokenizer, spec)
    assert found.name == "shipped"
    assert 40_000 <= found.tokens <= 56_000
    assert all(len(sequence) == LENGTH and sequence[0] == 1 for sequence in found.sequences)
    assert {token for sequence in found.sequences for token in sequence} >= set(TOOL_TOKENS)
    assert max(max(sequence) for sequence in found.sequences) < spec.vocab_size


def test_a_context_without_room_for_text(tokenizer: ChatTokenizer, spec: ModelSpec) -> None:
    with pytest.raises(PromptError, match="begins a text with 1 tokens, the model takes 1; there is no room"):
        shipped_text(tokenizer, replace(spec, max_position_embeddings=1), 2048)


def test_fewer_tokens_are_a_prefix_with_the_mix_of_the_whole(tokenizer: ChatTokenizer, spec: ModelSpec) -> None:
    whole = shipped_text(tokenizer, spec)
    part = shipped_text(tokenizer, spec, 12_000)
    assert part.sequences == whole.sequences[: 12_000 // LENGTH]
    text = tokenizer.decode([token for sequence in part.sequences for token in sequence])
    assert all(re.search(letters, text) for letters in SCRIPTS.values())
    assert "<|tool_call_start|>" in text and "```" in text


def test_conversations_go_through_the_checkpoints_template(tmp_path: Path) -> None:
    """One that writes only its mark, and one that has no room for tools."""
    folder = write_tiny(tmp_path / "tiny")
    spec = open_checkpoint(folder).spec
    plain = ChatTokenizer(folder)
    rendered = plain.decode([t for s in shipped_text(plain, spec).sequences for t in s])
    assert "<|im_start|>user\n" in rendered
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no') }}", encoding="utf-8")
    refusing = ChatTokenizer(folder)
    text = refusing.decode([t for s in shipped_text(refusing, spec).sequences for t in s])
    assert "<|im_start|>" not in text and "How to read a tide table" in text
    (folder / "chat_template.jinja").unlink()
    assert shipped_text(ChatTokenizer(folder), spec).sequences == shipped_text(refusing, spec).sequences


def test_a_file_plain_or_compressed(tmp_path: Path, tokenizer: ChatTokenizer, spec: ModelSpec) -> None:
    text = "".join(f"{i}: {TEXT}" for i in range(40))
    plain, packed = tmp_path / "text.txt", tmp_path / "text.txt.xz"
    plain.write_text(text, encoding="utf-8")
    packed.write_bytes(lzma.compress(text.encode()))
    found = file_text(plain, tokenizer, spec)
    assert found.name == "text.txt" and found.sequences == file_text(packed, tokenizer, spec).sequences
    assert all(len(sequence) == LENGTH and sequence[0] == 1 for sequence in found.sequences)
    tokens = tokenizer.encode(text, special=False)
    assert [token for sequence in found.sequences for token in sequence[1:]] == tokens[: len(found.sequences) * 511]


def test_fewer_tokens_of_a_file_are_spread_over_it(tmp_path: Path, tokenizer: ChatTokenizer, spec: ModelSpec) -> None:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{i}: {TEXT}" for i in range(60)), encoding="utf-8")
    whole, part = file_text(path, tokenizer, spec), file_text(path, tokenizer, spec, 4 * LENGTH)
    places = [whole.sequences.index(sequence) for sequence in part.sequences]
    assert len(places) == 4 and places[0] == 0 and places[-1] >= len(whole.sequences) // 2


def test_the_text_that_is_scored_is_refused(tmp_path: Path, tokenizer: ChatTokenizer, spec: ModelSpec) -> None:
    copy = tmp_path / "mine.txt"
    copy.write_text(held_out_text().text, encoding="utf-8", newline="")
    with pytest.raises(PromptError, match="held-out text"):
        file_text(copy, tokenizer, spec)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"too short", f"expected at least {FEWEST}"),
        (b"\xff\xfe\x00broken", r"is not UTF-8 \(UTF-16\)"),
        (None, "is missing"),
    ],
)
def test_a_file_that_cannot_be_used(
    tmp_path: Path, tokenizer: ChatTokenizer, spec: ModelSpec, content: bytes | None, message: str
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PromptError, match=message):
        file_text(path, tokenizer, spec)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    spec = open_checkpoint(write_tiny(tmp_path / "tiny")).spec
    with pytest.raises(PromptError, match="do not belong together"):
        shipped_text(tokenizer, spec)
