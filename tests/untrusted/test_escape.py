"""A name is that name, whatever document it is written into."""

from __future__ import annotations

import ast
import json
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from lfm2export.untrusted.escape import markdown, markdown_code, one_line, quoted

NAMES = [
    "LFM2-350M",
    "gather_block_quantized",
    "_a_ __b__",
    "x`|<script>alert(1)</script>\n# y",
    "![a](http://b.c) [d](javascript:e) <!-- f --> &amp; **g** ~~h~~ $i$",
    "``two`` and `",
    "`",
    "a|b",
    "a\\",
    "\\`",
    "- item",
    "1. item",
    "12) item",
    "---",
    "===",
    "# heading",
    "> said",
    "+ plus",
    "@somebody www.example.org https://example.org x@example.org",
    'quote " and \\',
    "a\x00b\u2028c\u202ed\x1b[31m",
    "end */ --> </script>",
]


class Words(HTMLParser):
    """The texts of a document, and the elements in it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words, self.elements = "", []  # type: ignore[var-annotated]
        self.feed(html)

    def handle_data(self, data: str) -> None:
        self.words += data

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.elements.append(tag)


def shown(text: str) -> Words:
    return Words(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text))


@pytest.mark.parametrize("name", NAMES)
def test_markdown_shows_the_name_as_words(name: str) -> None:
    found = shown(markdown(name))
    assert found.words.strip() == one_line(name) and found.elements == ["p"]
    table = shown(f"| a | b |\n|---|---|\n| {markdown(name)} | {markdown_code(name)} |\n")
    assert [element for element in table.elements if element not in ("code",)] == [
        *("table", "thead", "tr", "th", "th", "tbody", "tr", "td", "td")
    ]
    assert table.words.count(one_line(name)) >= 2


@pytest.mark.parametrize("name", NAMES)
def test_code_is_the_name(name: str) -> None:
    found = shown(f"The {markdown_code(name)} is there.")
    assert found.words.strip() == f"The {one_line(name)} is there." and found.elements == ["p", "code"]


@pytest.mark.parametrize("name", NAMES)
def test_a_literal_is_the_name_in_every_language(name: str) -> None:
    literal = quoted(name)
    assert ast.literal_eval(literal) == json.loads(literal) == one_line(name)
    assert "\n" not in literal and "<" not in literal


def test_names_of_ordinary_models_stay_readable() -> None:
    assert markdown("LFM2-350M-my_tune v1.2") == "LFM2-350M-my_tune v1.2"
    assert markdown_code("model.layers.0.conv.in_proj.weight") == "`model.layers.0.conv.in_proj.weight`"
    assert markdown("a <b> & c_") == "a &#60;b&#62; &#38; c\\_"


def test_a_name_that_is_no_unicode_can_be_written() -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert one_line(name) == "caf\ufffd"
    assert quoted(name).encode() and markdown(name).encode() and markdown_code(name).encode()
