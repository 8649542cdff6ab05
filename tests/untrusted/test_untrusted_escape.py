"""Names written into Markdown, Python and JavaScript: read back by the parsers of those languages."""

from __future__ import annotations

import ast
import json
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from lfm2export.untrusted.escape import markdown, markdown_code, on_terminal, one_line, quoted

PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])

#: Weighted towards what the languages read.
TEXTS = st.text(max_size=40) | st.text("\\`*_{}[]()<>#+-=.!|~&$:;/\"' \n\r\t1ax@w\u2028\u202e\0", max_size=40)

ATTACKS = (
    "[click](https://evil.example)",
    "<script>alert(1)</script>",
    "![x](y)",
    "a\n# heading\n\n- list",
    "1. list",
    "1) list",
    "- list",
    "+ list",
    "> quote",
    "===",
    "---",
    "***",
    "| a | b |",
    "```\ncode",
    "    code",
    "&copy; &#60;b&#62;",
    "\\",
    "\\<b>",
    "\\|",
    "`",
    "a`",
    "``a`",
    "~~gone~~",
    "<!-- parity -->",
    "[ref]: x",
    "https://evil.example www.evil.example",
    "\u202egnp.exe",
    "",
)


def attacks(test):  # type: ignore[no-untyped-def]
    for text in ATTACKS:
        test = example(text)(test)
    return settings(max_examples=300, deadline=None)(given(TEXTS)(test))


def inline(tokens: list[Token], opening: str) -> list[Token]:
    """The inline tokens of the blocks that `opening` opens."""
    return [tokens[i + 1] for i, token in enumerate(tokens) if token.type == opening]


def plain(token: Token) -> str:
    """The text of an inline token that holds text alone."""
    kinds = {child.type for child in token.children or []}
    assert kinds <= {"text", "text_special"}, kinds
    return "".join(child.content for child in token.children or [])


def code_of(children: list[Token]) -> str:
    """The text of a code span, or of a code element that holds text alone."""
    if len(children) == 1:
        assert children[0].type == "code_inline"
        return children[0].content
    opening, *words, closing = children
    assert (opening.content, closing.content) == ("<code>", "</code>")
    assert {child.type for child in words} <= {"text", "text_special"}
    return "".join(child.content for child in words)


@attacks
def test_markdown_is_plain_words_in_a_paragraph(text: str) -> None:
    tokens = PARSER.parse(markdown(text))
    if one_line(text):
        assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
        assert plain(tokens[1]) == one_line(text)
    tokens = PARSER.parse(f"before {markdown(text)} after\n\nnext")
    first, second = inline(tokens, "paragraph_open")
    assert plain(first) == f"before {one_line(text)} after" and plain(second) == "next"


@attacks
def test_markdown_is_one_cell_of_a_table(text: str) -> None:
    for write in (markdown, markdown_code):
        tokens = PARSER.parse(f"| a | b |\n| - | - |\n| {write(text)} | x |\n")
        cells = inline(tokens, "td_open")
        assert len(cells) == 2 and plain(cells[1]) == "x"
        if write is markdown:
            assert plain(cells[0]) == one_line(text)
        else:
            assert code_of(cells[0].children or []) == one_line(text)


@attacks
def test_code_is_one_span_of_a_paragraph(text: str) -> None:
    tokens = PARSER.parse(f"before {markdown_code(text)} after")
    (found,) = inline(tokens, "paragraph_open")
    before, *code, after = found.children or []
    assert (before.content, after.content) == ("before ", " after")
    assert code_of(code) == one_line(text)


@attacks
def test_nothing_that_github_makes_a_link_of(text: str) -> None:
    assert not re.search(r"(https?|ftp)://|www\.", markdown(text), re.IGNORECASE)


@attacks
def test_quoted_is_the_same_string_in_python_and_javascript(text: str) -> None:
    literal = quoted(text)
    assert ast.literal_eval(literal) == json.loads(literal)
    assert (
        "\n" not in literal and "<" not in literal and ">" not in literal and not re.search("[\u2028\u2029]", literal)
    )
    assert re.sub(r"\s+", " ", json.loads(literal)).strip() == re.sub(r"\s+", " ", one_line(text))


@attacks
def test_one_line_has_no_break_and_turns_no_direction(text: str) -> None:
    line = one_line(text)
    assert len(line.splitlines()) <= 1 and one_line(line) == line
    assert not re.search("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]", line)


@given(TEXTS)
def test_a_terminal_is_told_nothing(text: str) -> None:
    assert all(char.isprintable() or ord(char) > 0x9F or char in "\n\t\r" for char in on_terminal(text))


def test_plain_names_stay_readable() -> None:
    assert markdown("LFM2-350M v1.0") == "LFM2-350M v1.0"
    assert markdown("my_tune of ml_dtypes 2.0, q4 (all)") == "my_tune of ml_dtypes 2.0, q4 (all)"
    assert markdown("a <b> & c_") == "a &#60;b&#62; &#38; c\\_"
    assert markdown_code("layers.0.in_proj.weight") == "`layers.0.in_proj.weight`"
    assert quoted("LFM2-350M ü") == '"LFM2-350M ü"'


@pytest.mark.parametrize("text", ["</script>", "</SCRIPT >", "<!--", "]]>"])
def test_quoted_ends_no_script_element(text: str) -> None:
    assert not re.search(r"[<>]", quoted(text))


def test_a_name_that_is_no_unicode_can_be_written() -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert one_line(name) == "caf\ufffd"
    assert all(write(name).encode() for write in (quoted, markdown, markdown_code))
