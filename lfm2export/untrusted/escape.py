"""Names from outside as they are written into Markdown, Python and JavaScript, and texts on a terminal.

HTML takes `html.escape`, YAML and JSON their own writers. No name brings a line break or a control character into a
document: every function here goes through :func:`one_line` first.
"""

from __future__ import annotations

import json
import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\u061c]+")
#: What a terminal may obey; line ends and tabs are for texts of more than one line.
_COMMANDS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|\r(?!\n)")
_SURROGATE = re.compile("[\ud800-\udfff]")
#: An underscore inside a word is one.
_MARKDOWN = re.compile(r"([\\`*\[\]#~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
#: What a browser takes for markup, a table for its next cell, and a hub for a mention or an address.
_ENTITIES = re.compile(r"[<>&@|]|:(?=//)|(?<=www)\.", re.IGNORECASE)
#: What begins a list, a heading or a rule where it stands first.
_FIRST = re.compile(r"^(?:(?=(?:-+|=+|\+)(?:\s|$))|(\d+)(?=[.)](?:\s|$)))")
_PLAIN_CODE = re.compile(r"[^`|<>&@]+")


def one_line(text: str) -> str:
    """`text` with every run of line breaks, control characters and marks that turn its direction as one space.

    What stands for a byte that is no UTF-8, as in a folder's name, becomes U+FFFD.
    """
    return _SURROGATE.sub("\ufffd", _CONTROL.sub(" ", text)).strip()


def on_terminal(text: str) -> str:
    """`text` of any number of lines with every control character spelled out (`\\x1b`), so that a terminal shows it."""
    return _COMMANDS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def markdown(text: str) -> str:
    """`text` as plain words in a paragraph or a table's cell: no emphasis, link, mention, HTML or further column."""
    text = _ENTITIES.sub(lambda found: f"&#{ord(found.group())};", _MARKDOWN.sub(r"\\\1", one_line(text)))
    return _FIRST.sub(lambda found: f"{found.group(1) or ''}\\", text)


def markdown_code(text: str) -> str:
    """`text` as code, in a table too: between backticks, or as an element where backticks cannot hold it."""
    text = one_line(text)
    return f"`{text}`" if _PLAIN_CODE.fullmatch(text) else f"<code>{markdown(text)}</code>"


def quoted(text: str) -> str:
    """`text` as a string literal that Python and JavaScript both read, inside a script element too."""
    literal = json.dumps(one_line(text), ensure_ascii=False)
    return literal.replace("<", "\\u003c").replace(">", "\\u003e")
