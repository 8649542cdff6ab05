"""JSON from outside: what is read is what every other reader reads, or nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfm2export.errors import SourceError
from lfm2export.untrusted import json_reader
from lfm2export.untrusted.json_reader import kind, parse_json, read_json, read_object

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def parsed(data: bytes) -> Any:
    return parse_json(data, "the file", SourceError, "restore it")


def refusal(data: bytes) -> str:
    with pytest.raises(SourceError) as caught:
        parsed(data)
    message = str(caught.value)
    assert message.startswith("the file ") and message.endswith("; restore it") and "\n" not in message
    assert len(message) < 400
    return message


@settings(deadline=None)
@given(value=VALUES, ascii=st.booleans(), mark=st.booleans(), indent=st.none() | st.integers(0, 2))
def test_what_json_writes_comes_back(value: Any, ascii: bool, mark: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii, indent=indent)
    assert parsed((b"\xef\xbb\xbf" if mark else b"") + text.encode()) == value


@settings(max_examples=300, deadline=None)
@given(value=VALUES, data=st.data())
def test_any_bytes_give_a_value_or_one_line(value: Any, data: st.DataObject) -> None:
    content = bytearray(json.dumps(value).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        content[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    try:
        found = parsed(bytes(content))
    except SourceError as error:
        assert "\n" not in str(error)
    else:
        json.dumps(found, allow_nan=False, ensure_ascii=False).encode()  # can be written again


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is not valid JSON (Expecting value"),
        (b"{", "is not valid JSON"),
        (b"{} {}", "Extra data"),
        (b"{'a': 1}", "is not valid JSON"),
        (b'{"a": 1, "a": 1}', "an object has the key 'a' twice"),
        (b'{"b": {"a": 1, "\\u0061": 2}}', "an object has the key 'a' twice"),
        (b'{"a\\nb": 1, "a\\nb": 2}', "an object has the key 'a\\nb' twice"),
        (b"[NaN]", "NaN is no JSON number"),
        (b"[Infinity]", "Infinity is no JSON number"),
        (b"[-Infinity]", "-Infinity is no JSON number"),
        (b"[1e999]", "the number 1e999 is too large"),
        (b"[-1e400]", "the number -1e400 is too large"),
        (b"[" + b"9" * 41 + b"]", "... of 41 digits is too large"),
        (b"[" + b"9" * 100_000 + b"]", "the number 99999999999999999999... of 100,000 digits is too large"),
        (b'"\\ud800"', "half a surrogate pair"),
        (b'{"\\udc00": 1}', "half a surrogate pair"),
        (b'"\xed\xa0\x80"', "is not UTF-8 (byte 1 is 0xed)"),
        ("{}".encode("utf-16"), "is not UTF-8 (UTF-16)"),
        (b"\xfe\xff\0{\0}", "is not UTF-8 (UTF-16)"),
        ("{}".encode("utf-32"), "is not UTF-8"),
        (b"\xff", "is not UTF-8 (byte 0 is 0xff)"),
        (b'"\xc0\xaf"', "is not UTF-8"),
        (b"[" * 65 + b"]" * 65, "is nested too deeply, expected at most 64"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'"a\nb"', "Invalid control character"),
    ],
)
def test_what_is_refused(data: bytes, said: str) -> None:
    assert said in refusal(data)


@pytest.mark.parametrize("depth", [1, 64])
def test_as_deep_as_allowed(depth: int) -> None:
    assert parsed(b"[" * depth + b"]" * depth) is not None


def test_pairs_of_surrogates_and_long_numbers_are_fine() -> None:
    assert parsed(b'"\\ud83d\\ude00"') == "\U0001f600"
    assert parsed(b"1000000000000000019884624838656") == 1000000000000000019884624838656  # model_max_length
    assert math.isclose(parsed(b"1e-999"), 0.0)


@pytest.mark.parametrize(
    ("limit", "data", "said"),
    [
        ("MAX_CONTAINERS", b"[[],[],[],{}]", "holds 5 lists and objects, expected at most 4"),
        ("MAX_MEMBERS", b'{"a":1,"b":1,"c":1,"d":1,"e":1}', "holds 5 members, expected at most 4"),
        ("MAX_VALUES", b"[1,1,1,1,1,1]", "holds 5 values, expected at most 4"),
    ],
)
def test_counts_are_bounded(monkeypatch: pytest.MonkeyPatch, limit: str, data: bytes, said: str) -> None:
    assert parsed(data) is not None
    monkeypatch.setattr(json_reader, limit, 4)
    assert said in refusal(data)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": [1]}')
    assert read_object(path, SourceError) == {"a": [1]}
    assert read_json(path, SourceError) == {"a": [1]}
    with pytest.raises(SourceError, match="has more than 9 bytes, expected at most that many"):
        read_json(path, SourceError, limit=9)
    assert read_json(path, SourceError, limit=10) == {"a": [1]}
    for text, what in (("[1]", "list"), ('"x"', "string"), ("1.5", "number"), ("true", "boolean"), ("null", "null")):
        path.write_text(text)
        with pytest.raises(SourceError, match=f"holds a JSON {what}, expected an object; copy or download it again"):
            read_object(path, SourceError)
    with pytest.raises(SourceError, match="is missing"):
        read_object(tmp_path / "none.json", SourceError)


def test_kinds() -> None:
    assert [kind(value) for value in ({}, [], "", True, 1, 1.5, None)] == [
        *("object", "list", "string", "boolean", "number", "number", "null")
    ]
