"""Tool lists and Pythonic calls: what is read, and what is refused with one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lfm2export.errors import PromptError
from lfm2export.generation.tools import CALL_END, CALL_START, ToolCall, parse_tool_calls, read_tools
from lfm2export.untrusted.escape import one_line

WEATHER = {"name": "get_weather", "description": "Weather", "parameters": {"type": "object", "properties": {}}}


def wrapped(body: str) -> str:
    return f"{CALL_START}{body}{CALL_END}"


def test_the_cards_answer() -> None:
    text = (
        wrapped('[get_candidate_status(candidate_id="12345")]') + "Checking the current status of candidate ID 12345."
    )
    assert parse_tool_calls(text).calls == (ToolCall("get_candidate_status", {"candidate_id": "12345"}),)
    assert parse_tool_calls(text).errors == ()


@pytest.mark.parametrize(
    ("body", "calls"),
    [
        ('[f(a="x", b=2), g()]', (ToolCall("f", {"a": "x", "b": 2}), ToolCall("g", {}))),
        ("f(a=1)", (ToolCall("f", {"a": 1}),)),
        ("[f(a=-1.5, b=[1, {'k': None}], c=True)]", (ToolCall("f", {"a": -1.5, "b": [1, {"k": None}], "c": True}),)),
        ("[f(a=true, b=[false, null])]", (ToolCall("f", {"a": True, "b": [False, None]}),)),
        ("[files.read(path='a\\nb')]", (ToolCall("files.read", {"path": "a\nb"}),)),
        ("[]", ()),
        ("\n[f(\n  a='é'\n)]\n", (ToolCall("f", {"a": "é"}),)),
    ],
)
def test_calls_that_are_read(body: str, calls: tuple[ToolCall, ...]) -> None:
    found = parse_tool_calls(wrapped(body))
    assert (found.calls, found.errors) == (calls, ())


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("[f(a=]", "not Python"),
        ("", "not Python"),
        ("[f('x')]", "f has an argument without a name"),
        ("[f(**{'a': 1})]", r"f has \*\* arguments"),
        ("[f(a=1, a=2)]", "twice|repeated"),
        ("[f(a=open('/etc/passwd'))]", "f's a is not a literal"),
        ("[f(a=__import__('os').system('true'))]", "f's a is not a literal"),
        ("[f(a=b)]", "f's a is not a literal"),
        ("[f(a=1 if 1 else 2)]", "not a literal"),
        ("[f(a=f'{1}')]", "not a literal"),
        ("[1]", "expected a call"),
        ("[f(a=1)(b=2)]", "not a plain name"),
        ("[(lambda: 1)()]", "not a plain name"),
        ("[f(a=" + "(" * 300 + "1" + ")" * 300 + ")]", "not Python|too deeply"),
        ("[f(a=0x" + "f" * 5000 + ")]", "f has a number of too many digits"),
        ("[f(a=[{'b': 0x" + "f" * 5000 + "}])]", "f has a number of too many digits"),
        ("[0x" + "f" * 5000 + "]", "cannot be read"),
        ("[" + "-" * 900 + "1]", "nested too deeply|expected a call"),
        ("[" + "a." * 2000 + "f(x=1)]", "nested too deeply"),
        ("[" + "a." * 2000 + "f]", "nested too deeply"),
    ],
)
def test_anything_else_is_an_error_line(body: str, reason: str) -> None:
    found = parse_tool_calls(wrapped(body))
    assert found.calls == ()
    (error,) = found.errors
    assert "\n" not in error
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(error)


def test_a_call_that_is_cut_off_and_text_without_calls() -> None:
    assert "cut off" in parse_tool_calls(CALL_START + "[f(a=1").errors[0]
    assert parse_tool_calls("no calls here [f(a=1)]").calls == ()
    two = parse_tool_calls(wrapped("[f()]") + " and " + wrapped("[g(") + wrapped("[h()]"))
    assert [call.name for call in two.calls] == ["f", "h"]
    assert len(two.errors) == 1


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True).filter(lambda n: n.isidentifier()), values))
)
def test_what_is_written_is_read_back(arguments: list[dict[str, object]]) -> None:
    import keyword

    calls = tuple(
        ToolCall("f", {key: value for key, value in one.items() if not keyword.iskeyword(key)}) for one in arguments
    )
    text = f"[{', '.join(map(str, calls))}]"
    if CALL_END not in text and CALL_START not in text:
        assert parse_tool_calls(wrapped(text)).calls == calls


@given(st.text())
def test_no_text_makes_it_fail(text: str) -> None:
    for found in (parse_tool_calls(text), parse_tool_calls(wrapped(text)), parse_tool_calls(CALL_START + text)):
        assert all(len(error) <= 150 and one_line(error) == error for error in found.errors)


@pytest.mark.parametrize(
    "body", ["[f(\x1b[31m", "[" + "g" * 300 + "('x')]", "[f(a=" + "9" * 5000 + ")]", "\x00", "x" * 900]
)
def test_errors_are_short_lines(body: str) -> None:
    (error,) = parse_tool_calls(wrapped(body)).errors
    assert len(error) <= 150 and one_line(error) == error


def test_tool_files(tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    wanted = [WEATHER, {"type": "function", "function": WEATHER}]
    path.write_text(json.dumps(wanted))
    assert read_tools(path) == wanted


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing"),
        ("{", "not valid JSON"),
        ("[" * 100 + "]" * 100, "nested too deeply"),
        ("{}", "holds a JSON object, expected a list"),
        ("[1]", "entry 0 is a JSON number"),
        ('[{"description": "x"}]', 'entry 0 has no "name"'),
        ('[{"type": "function", "function": {"name": 3}}]', 'entry 0 has no "name"'),
    ],
)
def test_bad_tool_files_get_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "tools.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(PromptError, match=message) as caught:
        read_tools(path)
    assert "\n" not in str(caught.value)
