"""tokenizer.json and the special tokens: what is read, and what gets one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lfm2export.errors import PromptError, TokenizerError
from lfm2export.text.tokenizer import ChatTokenizer
from lfm2export.text.tokenizer_file import (
    check_tokenizer,
    load_tokenizer,
    read_special_tokens,
    read_tokenizer_file,
    read_tokenizer_settings,
)
from tiny import edit_json

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def test_ids_and_added_tokens(files: Path) -> None:
    found = read_tokenizer_file(files)
    assert found.added["<|im_end|>"] == 7 and found.vocabulary["<|im_end|>"] == 7
    assert len(found.vocabulary) <= 512 and max(found.vocabulary.values()) < 512
    check_tokenizer(found, 512)


def test_truncation_and_padding_are_of_training(files: Path) -> None:
    plain = ChatTokenizer(files).encode("word " * 100)
    edit_json(
        files / "tokenizer.json",
        truncation={"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
        padding={
            "strategy": {"Fixed": 64},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<|pad|>",
        },
    )
    assert ChatTokenizer(files).encode("word " * 100) == plain


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"added_tokens": [{"id": 7}]}, 'entry 0 of added_tokens is .*expected an object with "id" and "content"'),
        ({"added_tokens": {"x": 1}}, "added_tokens is a object, expected a list"),
        ({"added_tokens": [[]]}, "entry 0 of added_tokens"),
        ({"added_tokens": [{"id": -7, "content": "x"}]}, "the token 'x' has the id -7"),
        ({"added_tokens": [{"id": True, "content": "x"}]}, "has the id True"),
        ({"added_tokens": [{"id": 10**12, "content": "x"}]}, "has the id 1000000000000"),
        ({"added_tokens": [{"id": 7, "content": "new"}]}, "with one id, 7"),
        ({"added_tokens": [{"id": 9, "content": "<|im_end|>"}]}, "with the ids 7 and 9"),
        (
            {"added_tokens": [{"id": 7, "content": "x" * 5000}]},
            r"the token 'xxx.* of 5,000 characters, expected at most",
        ),
        ({"model": []}, "has no model vocabulary"),
        ({"model": {"type": "BPE", "vocab": {}}}, "has no model vocabulary"),
        ({"model": {"type": "BPE", "vocab": {"a": 1.5}}}, "the token 'a' has the id 1.5"),
        ({"model": {"type": "BPE", "vocab": {"a": 1, "b": 1}}}, "with one id, 1"),
        ({"model": {"type": "Unigram", "vocab": [["a"]]}}, "has no model vocabulary"),
    ],
)
def test_a_damaged_file_is_told_by_its_entry(files: Path, changes: dict[str, Any], message: str) -> None:
    edit_json(files / "tokenizer.json", **changes)
    with pytest.raises(TokenizerError, match=message) as caught:
        read_tokenizer_file(files)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "holds a JSON list"),
        ("[" * 200_000, "nested too deeply"),
        ('{"model": 1, "model": 2}', "the key 'model' twice"),
    ],
)
def test_what_is_not_a_json_object(files: Path, text: str, message: str) -> None:
    (files / "tokenizer.json").write_text(text)
    with pytest.raises(TokenizerError, match=message):
        read_tokenizer_file(files)
    (files / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match=r"has no tokenizer\.json \(only tokenizer_config\.json\)"):
        read_tokenizer_file(files)


def regex(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split]}}


MISSING_PIECE = {
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<x>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {},
    }
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre_tokenizer": 5}, "Exception: "),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "PanicException: "),
        (MISSING_PIECE, "PanicException: no entry found for key"),
        (regex("("), "Exception: "),
        (regex("(a+)+$"), "retry-limit-in-match over"),
    ],
)
def test_what_the_library_dies_of_is_one_line_and_no_noise(
    files: Path, changes: dict[str, Any], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    edit_json(files / "tokenizer.json", **changes)
    file = read_tokenizer_file(files)
    for use in (load_tokenizer, lambda one: check_tokenizer(one, 512)):
        with pytest.raises(TokenizerError, match=message) as caught:
            use(file)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_ids_beyond_the_embedding_are_refused(files: Path) -> None:
    largest = max(read_tokenizer_file(files).vocabulary.values())
    with pytest.raises(TokenizerError, match=f"with id {largest}, expected ids below vocab_size {largest}"):
        check_tokenizer(read_tokenizer_file(files), largest)
    single = [{"SpecialToken": {"id": "<x>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    beyond = {"<x>": {"id": "<x>", "ids": [99_999], "tokens": ["x"]}}
    processor = {**MISSING_PIECE["post_processor"], "single": single, "special_tokens": beyond}
    edit_json(files / "tokenizer.json", post_processor=processor)
    with pytest.raises(TokenizerError, match="gives '' the id 99999, expected ids below vocab_size 512"):
        check_tokenizer(read_tokenizer_file(files), 512)


def test_a_text_that_the_library_dies_of_is_one_line(files: Path) -> None:
    edit_json(files / "tokenizer.json", **regex("(b+)+$"))
    tokenizer = ChatTokenizer(files)
    with pytest.raises(PromptError, match="the tokenizer cannot encode this text"):
        tokenizer.encode("b" * 40 + "!")
    with pytest.raises(PromptError, match="the tokenizer cannot encode this text"):
        tokenizer.encode("\ud800")


def test_special_tokens_as_texts_or_objects(files: Path) -> None:
    path = files / "tokenizer_config.json"
    edit_json(path, eos_token={"content": "<|endoftext|>", **FLAGS})
    found = read_special_tokens(files, read_tokenizer_settings(files))
    assert found.named["eos_token"] == "<|endoftext|>" and found.eos == ("<|endoftext|>",)
    (files / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>"}')
    found = read_special_tokens(files, read_tokenizer_settings(files))
    assert found.named["eos_token"] == "<|im_end|>" and set(found.eos) == {"<|im_end|>", "<|endoftext|>"}
    edit_json(path, added_tokens_decoder={})
    assert read_special_tokens(files, read_tokenizer_settings(files)).named["eos_token"] == "<|endoftext|>"
    for wrong in (5, {"id": 7}, ["<|im_end|>"], True):
        edit_json(path, eos_token=wrong)
        with pytest.raises(TokenizerError, match=r"eos_token is .*expected a text, or an object"):
            read_special_tokens(files, read_tokenizer_settings(files))


def test_a_folder_without_settings_has_none(files: Path) -> None:
    (files / "tokenizer_config.json").unlink()
    assert read_tokenizer_settings(files) == {}
    assert ChatTokenizer(files).encode("x")


@pytest.mark.parametrize("changed", ["named", "all"])
def test_special_tokens_are_those_of_transformers(files: Path, changed: str) -> None:
    from transformers import AutoTokenizer

    from standin import CONFIG

    (files / "config.json").write_text(json.dumps(CONFIG))
    (files / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    if changed == "all":
        edit_json(files / "tokenizer_config.json", added_tokens_decoder={"7": {"content": "<|im_end|>", **FLAGS}})
    found = read_special_tokens(files, read_tokenizer_settings(files)).named
    theirs = AutoTokenizer.from_pretrained(files).special_tokens_map
    assert found == {name: text for name, text in theirs.items() if name in found}
