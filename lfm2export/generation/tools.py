"""Tool use: reading a tool list, and the Pythonic calls that LFM2 writes as its answer.

An answer such as `<|tool_call_start|>[get_weather(city="Oslo", days=2)]<|tool_call_end|>` is parsed with `ast`; only
literals are accepted and nothing is ever evaluated.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfm2export.errors import PromptError
from lfm2export.untrusted.escape import one_line
from lfm2export.untrusted.json_reader import kind, read_json
from lfm2export.untrusted.paths import anywhere

CALL_START = "<|tool_call_start|>"
CALL_END = "<|tool_call_end|>"

#: Names that models write for Python's literals.
_JSON_NAMES = {"true": True, "false": False, "null": None}


@dataclass(frozen=True)
class ToolCall:
    """One call: the function's name and its keyword arguments."""

    name: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in self.arguments.items())})"


@dataclass(frozen=True)
class ToolCalls:
    """The calls of one answer, and a line for each block that could not be parsed."""

    calls: tuple[ToolCall, ...]
    errors: tuple[str, ...] = ()


def read_tools(path: Path) -> list[dict[str, Any]]:
    """The tool list of a JSON file: function objects, bare or as `{"type": "function", "function": {...}}`.

    Raises:
        PromptError: the file is missing, no JSON, no list, or an entry has no name.
    """
    tools = read_json(path, PromptError, "give a JSON list of function objects", folder=anywhere(path))
    if not isinstance(tools, list):
        raise PromptError(f"{path} holds a JSON {kind(tools)}, expected a list of function objects")
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise PromptError(f"{path}: entry {index} is a JSON {kind(tool)}, expected a function object")
        function = tool["function"] if tool.get("type") == "function" and "function" in tool else tool
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise PromptError(f'{path}: entry {index} has no "name", expected the function\'s name as a string')
    return tools


def parse_tool_calls(text: str) -> ToolCalls:
    """Every call in `text`, an answer decoded with its special tokens.

    A block that is cut off or holds anything but calls with keyword literals gives an error line and no calls.
    """
    calls: list[ToolCall] = []
    errors: list[str] = []
    pattern = re.escape(CALL_START) + r"(.*?)(" + re.escape(CALL_END) + r"|\Z)"
    for found in re.finditer(pattern, text, flags=re.DOTALL):
        body = found.group(1).strip()
        if not found.group(2):
            errors.append(_line(f"the tool call is cut off before {CALL_END}: {_short(body)}"))
            continue
        try:
            calls.extend(_parse_block(body))
        except _BadCallError as error:
            errors.append(_line(f"the tool call cannot be read ({_short(str(error))}): {_short(body)}"))
    return ToolCalls(tuple(calls), tuple(errors))


class _BadCallError(Exception):
    """Why one block is no list of calls."""


def _parse_block(body: str) -> list[ToolCall]:
    try:
        tree = ast.parse(body, mode="eval").body
        nodes = tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]
        return [_call(node) for node in nodes]
    except (SyntaxError, ValueError) as error:
        raise _BadCallError(f"not Python: {error.args[0]}") from error
    except (RecursionError, MemoryError) as error:  # what parses may still be too deep to be walked
        raise _BadCallError("nested too deeply") from error


def _call(node: ast.expr) -> ToolCall:
    if not isinstance(node, ast.Call):
        raise _BadCallError(f"expected a call such as f(a=1), got {_short(ast.unparse(node))}")
    name = _dotted(node.func)
    if node.args:
        raise _BadCallError(f"{name} has an argument without a name")
    arguments: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise _BadCallError(f"{name} has ** arguments")
        if keyword.arg in arguments:
            raise _BadCallError(f"{name} has {keyword.arg} twice")
        arguments[keyword.arg] = _literal(keyword.value, f"{name}'s {keyword.arg}")
    call = ToolCall(name, arguments)
    try:
        str(call)
    except ValueError as error:  # Python writes no number of more than 4,300 digits, though it reads them in base 16
        raise _BadCallError(f"{name} has a number of too many digits") from error
    return call


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    raise _BadCallError("the function is not a plain name")


def _literal(node: ast.expr, where: str) -> Any:
    class Named(ast.NodeTransformer):
        def visit_Name(self, name: ast.Name) -> ast.expr:
            return ast.Constant(_JSON_NAMES[name.id]) if name.id in _JSON_NAMES else name

    try:
        return ast.literal_eval(Named().visit(node))
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise _BadCallError(f"{where} is not a literal") from error


def _short(text: str) -> str:
    line = " ".join(one_line(text).split())
    return line if len(line) <= 100 else line[:97] + "..."


def _line(text: str) -> str:
    """`text` for a person: short, of one line."""
    text = text.rstrip()
    return text if len(text) <= 150 else text[:147] + "..."
