"""YAML from outside: texts, lists and mappings; one line for everything else."""

from __future__ import annotations

import time

import pytest

from lfm2export.errors import SourceError
from lfm2export.untrusted.yaml_reader import MAX_YAML_BYTES, parse_yaml_mapping

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [*{before}, *{before}, *{before}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def parse(text: str) -> dict[str, object]:
    return dict(parse_yaml_mapping(text, "a card", SourceError, "correct it"))


def test_scalars_stay_texts() -> None:
    text = (
        "license: mit\nlanguage: [en, no]\nversion: 1.10\nday: 2024-01-02\nbig: 0x10\nnone:\nalso: ~\nquoted: 'null'\n"
    )
    assert parse(text) == {
        "license": "mit",
        "language": ["en", "no"],
        "version": "1.10",
        "day": "2024-01-02",
        "big": "0x10",
        "none": None,
        "also": None,
        "quoted": "null",
    }
    assert parse("") == parse("# a comment\n") == {}
    assert parse("model-index:\n- name: x\n  results: [{value: 1}]\n") == {
        "model-index": [{"name": "x", "results": [{"value": "1"}]}]
    }


def test_tags_construct_nothing() -> None:
    assert parse("x: !!python/object/apply:os.system ['true']\n") == {"x": ["true"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, r"line 2: an alias, \*a"),
        ("a: &x [*x]", "an alias"),
        ("a: 1\na: 2", "the key 'a' is there twice"),
        ("a: [", "line 2: "),
        ("a: b: c", "line 1: "),
        ("a: \x00", "not valid YAML"),
        ("- a", "holds a list"),
        ("words", "holds a text"),
        ("? [a]\n: b", "a key is a list"),
        ("a: 1\n--- \nb: 2", "more than one document"),
        ("a: " + "[" * 17 + "]" * 17, "nested deeper than 16"),
        ("a: " + "[" * 100_000, "not valid YAML"),
        ("- " * 100_000, "not valid YAML"),
        ("a: " + "x" * MAX_YAML_BYTES, "expected at most 1,048,576"),
    ],
)
def test_what_is_refused_is_refused_at_once_in_one_line(text: str, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(SourceError, match=message) as refused:
        parse(text)
    assert time.monotonic() - started < 2
    assert "\n" not in str(refused.value) and str(refused.value).endswith("; correct it")
    assert len(str(refused.value)) < 300
