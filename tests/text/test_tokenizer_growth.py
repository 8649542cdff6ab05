"""Tokenizers that make texts longer: by how much is bounded before one is used, and usual ones pass."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from lfm2export.errors import TokenizerError
from lfm2export.hub import shipped_folder
from lfm2export.text.sandbox import SandboxError, try_tokenizer
from lfm2export.text.tokenizer import ChatTokenizer
from lfm2export.text.tokenizer_growth import check_growth
from tiny import edit_json


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def text(pattern: str, content: str) -> dict[str, Any]:
    return replace({"String": pattern}, content)


def regex(pattern: str, content: str) -> dict[str, Any]:
    return replace({"Regex": pattern}, content)


def chain(*components: dict[str, Any], of: str = "normalizers") -> dict[str, Any]:
    return {"type": "Sequence", of: list(components)}


def charsmap(longest: int) -> dict[str, Any]:
    data = (4).to_bytes(4, "little") + b"trie" + b"a\0" + b"x" * longest + b"\0"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
FORM = {"type": "NFKC"}
METASPACE = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True}

USUAL = [
    {"normalizer": None, "pre_tokenizer": None, "decoder": None},
    {"normalizer": chain({"type": "Prepend", "prepend": "\u2581"}, text(" ", "\u2581"))},
    {"decoder": chain(text("\u2581", " "), {"type": "ByteFallback"}, {"type": "Fuse"}, of="decoders")},
    {"normalizer": chain(text("``", '"'), text("''", '"'), {"type": "NFKD"}, {"type": "Lowercase"}, charsmap(33))},
    {"normalizer": chain(*[regex(" {2,}", " "), regex(r"\s+", " "), regex("x", "y")] * 3)},
    {"normalizer": chain(FORM, {"type": "Lowercase"}), "pre_tokenizer": chain(BYTES, of="pretokenizers")},
]

LONGER = [
    {"normalizer": text("qzq", "x" * 1000)},
    {"normalizer": text("q", "x" * 9)},
    {"normalizer": text("", "x" * 8)},
    {"normalizer": regex("q", "x" * 9)},
    {"normalizer": chain(*[text("q", "qq")] * 4)},
    {"normalizer": chain(*[regex("(?=.)", "x")] * 4)},
    {"normalizer": chain(chain(text("q", "qqqq")), chain(chain(text("q", "qqqq"))))},
    {"normalizer": text("q", "qqqq"), "pre_tokenizer": chain(*[METASPACE] * 2, of="pretokenizers")},
    {"normalizer": {"type": "Prepend", "prepend": "x" * 8}},
    {"normalizer": chain(text("a", "\ufdfa"), FORM, text("\u0627", "\ufdfa"), FORM)},
    {"pre_tokenizer": chain(*[BYTES] * 3, of="pretokenizers")},
    {"normalizer": charsmap(33 * 9)},
    {"decoder": text("q", "x" * 9)},
    {"decoder": chain(*[text("q", "qqq")] * 2, of="decoders")},
]


@pytest.mark.parametrize("changes", USUAL)
def test_usual_ones_pass(changes: dict[str, Any]) -> None:
    check_growth(Path("t"), changes)


def test_the_shipped_one_passes() -> None:
    check_growth(Path("t"), json.loads((shipped_folder() / "tokenizer.json").read_text()))


@pytest.mark.parametrize("changes", LONGER)
def test_what_makes_texts_longer_is_one_line(changes: dict[str, Any]) -> None:
    with pytest.raises(TokenizerError, match=r"can make a text .* times as long, expected at most 8 times") as caught:
        check_growth(Path("t"), changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [one for one in LONGER if "Precompiled" not in str(one)])
def test_the_library_does_make_them_longer(changes: dict[str, Any]) -> None:
    """What is refused is no invention: each of these lengthens a text further with every stage that it has."""
    from tokenizers import Tokenizer

    def length(part: dict[str, Any]) -> int:
        model = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
        found = Tokenizer.from_str(json.dumps({"version": "1.0", "model": model, "added_tokens": [], **part}))
        sample = "qzqa b"
        if "decoder" in part:
            return len(found.decoder.decode([sample]))
        sample = found.normalizer.normalize_str(sample) if found.normalizer else sample
        pieces = found.pre_tokenizer.pre_tokenize_str(sample) if found.pre_tokenizer else [(sample, None)]
        return sum(len(piece) for piece, _ in pieces)

    assert length(changes) > len("qzqa b")


def test_too_many_components() -> None:
    with pytest.raises(TokenizerError, match="has 66 components in its normalizer and pre_tokenizer, expected at most"):
        check_growth(Path("t"), {"normalizer": chain(*[{"type": "Strip"}] * 65)})


def test_it_is_asked_before_anything_is_encoded(files: Path) -> None:
    edit_json(files / "tokenizer.json", normalizer=text("qzq", "x" * 1000))
    with pytest.raises(TokenizerError, match="can make a text 333 times as long"):
        ChatTokenizer(files)


def test_a_trial_has_a_limit_of_its_own(files: Path) -> None:
    edit_json(files / "tokenizer.json", normalizer=chain(*[regex(".", "." * 100)] * 5))
    with pytest.raises(SandboxError, match=r"memory|more than|crashes"):
        try_tokenizer((files / "tokenizer.json").read_text(), ["some text"])
