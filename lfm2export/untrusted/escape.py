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
_MARKDOWN = re.compile(r"[\\`*_{}\[\]()#+!|~<>&$]")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
#: What begins a list or underlines a heading at the start of a line.
_START = re.compile(r"^(\d*)([-=.])")
#: What GitHub makes links of without any mark.
_ADDRESS = re.compile(r"(?<=[A-Za-z])(:)(?=//)|(?<=[Ww]{3})(\.)")


def one_line(text: str) -> str:
    """`text` with every run of line breaks, control characters and marks that turn its direction as one space."""
    return _CONTROL.sub(" ", text).strip()


def on_terminal(text: str) -> str:
    """`text` of any number of lines with every control character spelled out (`\\x1b`), so that a terminal shows it."""
    return _COMMANDS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def markdown(text: str) -> str:
    """`text` as plain words in a paragraph or a table's cell: no emphasis, link, list, HTML or further column."""
    text = _MARKDOWN.sub(lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), one_line(text))
    text = _START.sub(r"\1\\\2", text)
    return _ADDRESS.sub(lambda found: f"&#{ord(found[0])};", text)


def markdown_code(text: str) -> str:
    """`text` as a code span, its fence longer than any run of backticks in it.

    Exact in a table's cell; elsewhere a `|` shows the backslash that a cell needs before it.
    """
    text = one_line(text).replace("|", "\\|") or " "
    fence = "`" * (max((len(run) for run in re.findall(r"`+", text)), default=0) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def quoted(text: str) -> str:
    """`text` as a string literal that Python and JavaScript both read, inside a script element too."""
    literal = json.dumps(_CONTROL.sub(" ", text), ensure_ascii=False)
    return literal.replace("<", "\\u003c").replace(">", "\\u003e")
