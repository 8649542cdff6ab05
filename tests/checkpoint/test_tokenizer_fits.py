"""The tokenizer beside the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lfm2export.checkpoint import check_tokenizer
from lfm2export.errors import TokenizerError
from tiny import tiny_config


def tokenizer_refusal(folder: Path, vocab_size: int, *parts: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        check_tokenizer(folder, vocab_size)
    message = str(caught.value)
    assert "\n" not in message
    assert [part for part in parts if part not in message] == [], message


def test_tokenizer(tiny: Path) -> None:
    tokens = json.loads((tiny / "tokenizer.json").read_text())["model"]["vocab"]
    largest = max(tokens.values())
    check_tokenizer(tiny, tiny_config()["vocab_size"])
    check_tokenizer(tiny, largest + 1)
    tokenizer_refusal(tiny, largest, f"with id {largest}", f"below vocab_size {largest}", "resize_token_embeddings")


def test_added_tokens_count(tiny: Path) -> None:
    path = tiny / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["added_tokens"].append({"id": 512, "content": "<new>"})
    path.write_text(json.dumps(tokenizer))
    tokenizer_refusal(tiny, 512, "'<new>' with id 512")
    check_tokenizer(tiny, 513)


def test_unigram_vocabulary(tmp_path: Path) -> None:
    tokenizer = {"model": {"type": "Unigram", "vocab": [["a", -1.0], ["b", -2.0]]}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    check_tokenizer(tmp_path, 2)
    tokenizer_refusal(tmp_path, 1, "'b' with id 1")


def test_no_tokenizer(tiny: Path) -> None:
    (tiny / "tokenizer.json").unlink()
    tokenizer_refusal(tiny, 512, "has no tokenizer.json (only tokenizer_config.json)", "save_pretrained")


@pytest.mark.parametrize("text", ["{", "[" * 100_000])
def test_damaged_tokenizer(tiny: Path, text: str) -> None:
    (tiny / "tokenizer.json").write_text(text)
    tokenizer_refusal(tiny, 512, "tokenizer.json is not valid JSON")


@pytest.mark.parametrize(
    "tokenizer", [{}, {"model": []}, {"model": {}}, {"model": {"vocab": {}}}, {"model": {"vocab": 3}}]
)
def test_tokenizer_without_vocabulary(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    tokenizer_refusal(tmp_path, 512, "has no model vocabulary")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"added_tokens": [{"id": 7}]}, "the added token {'id': 7}, expected an object with id and content"),
        ({"added_tokens": [3]}, "the added token 3"),
        ({"added_tokens": {"a": 1}}, "{'a': 1} as added_tokens, expected a list"),
        ({"added_tokens": [{"id": -1, "content": "x"}]}, "the token 'x' with id -1, expected a number from 0 on"),
        ({"added_tokens": [{"id": True, "content": "x"}]}, "the token 'x' with id True"),
        ({"added_tokens": [{"content": "x\n"}]}, "the token 'x\\n' with id None"),
        ({"model": {"vocab": {"a": "0"}}}, "the token 'a' with id '0'"),
        ({"model": {"vocab": {"a": 1.5}}}, "the token 'a' with id 1.5"),
        ({"model": {"vocab": [["a", 0.0], "b"]}}, "the entry 'b' in model.vocab, expected a token and its score"),
        ({"model": {"vocab": [[7, 0.0]]}}, "the entry [7, 0.0] in model.vocab"),
    ],
)
def test_tokens_that_are_none(tiny: Path, change: dict[str, Any], said: str) -> None:
    path = tiny / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    tokenizer_refusal(tiny, 512, f"{path} has {said}", "save it again with save_pretrained")


def test_tokenizer_that_is_a_list_or_has_a_key_twice(tiny: Path) -> None:
    (tiny / "tokenizer.json").write_text("[1]")
    tokenizer_refusal(tiny, 512, "tokenizer.json holds a JSON list, expected an object")
    (tiny / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0, "a": 1}}}')
    tokenizer_refusal(tiny, 512, "an object has the key 'a' twice")


def test_tokenizer_that_leads_out_of_the_folder(tiny: Path, tmp_path: Path) -> None:
    (tiny / "tokenizer.json").rename(tmp_path / "away.json")
    (tiny / "tokenizer.json").symlink_to(tmp_path / "away.json")
    tokenizer_refusal(tiny, 512, "tokenizer.json is a link to", "outside")
