"""The one reader of JSON from outside. What it returns is safe to walk, to write again and to index by key.

Refused, each in one line: more bytes or a deeper nesting than any file of the family has, another encoding than UTF-8
(a byte-order mark is dropped), a key that an object has twice (readers differ in which one they take), NaN and
Infinity (not JSON, and other parsers stop at them), a number beyond float64, an integer of more than 40 digits, half a
surrogate pair (cannot be written again).
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from lfm2export.errors import Lfm2ExportError
from lfm2export.untrusted.paths import shown
from lfm2export.untrusted.text import COPY_AGAIN, decode, read_bytes

#: Bytes of a config, an index or a manifest. The index of a mixture of 64 experts has about 1 MB.
MAX_BYTES = 16 << 20
#: Bytes of a tokenizer.json; one of 128,000 tokens has 17 MB.
MAX_TOKENIZER_BYTES = 64 << 20
#: Lists and objects in all; brackets inside strings count. A tokenizer.json has one for each of its merges. Empty lists
#: take 30 times their text in memory, and seconds.
MAX_CONTAINERS = 1 << 20
#: Members of objects and values in all, by the count of `:` and `,`. A tokenizer.json of 262,000 tokens has 0.3 and
#: 1.7 million. A million members take a second.
MAX_MEMBERS = 1 << 20
MAX_VALUES = 4 << 20
#: Lists and objects inside each other. The deepest file of the family, a tokenizer.json, has 7.
MAX_DEPTH = 64
#: Digits of an integer: 64 bits have 20. Python multiplies longer ones too, for as long as it takes.
MAX_DIGITS = 40

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_object(
    path: Path,
    error: type[Lfm2ExportError],
    remedy: str = COPY_AGAIN,
    *,
    folder: Path | None = None,
    limit: int = MAX_BYTES,
) -> dict[str, Any]:
    """The JSON object in `path`, which lies in `folder` (by default the one it is in).

    Raises:
        error: it cannot be read, is damaged, or holds something else; the message ends with `remedy`.
    """
    value = read_json(path, error, remedy, folder=folder, limit=limit)
    if not isinstance(value, dict):
        raise error(f"{path} holds a JSON {kind(value)}, expected an object; {remedy}")
    return value


def read_json(
    path: Path,
    error: type[Lfm2ExportError],
    remedy: str = COPY_AGAIN,
    *,
    folder: Path | None = None,
    limit: int = MAX_BYTES,
) -> Any:
    """As :func:`read_object`, for any JSON value."""
    return parse_json(read_bytes(path, error, limit, folder=folder, remedy=remedy), path, error, remedy)


def parse_json(data: bytes, what: object, error: type[Lfm2ExportError], remedy: str) -> Any:
    """The JSON value in `data`, called `what` in messages.

    Raises:
        error: it is none; see the top of this module.
    """
    text = decode(data, what, error, remedy)
    for marks, things, limit in (
        ("[{", "lists and objects", MAX_CONTAINERS),
        (":", "members", MAX_MEMBERS),
        (",", "values", MAX_VALUES),
    ):
        count = sum(text.count(mark) for mark in marks)
        if count > limit:
            raise error(f"{what} holds {count:,} {things}, expected at most {limit:,}; {remedy}")
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=_int
        )
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as problem:  # UnicodeEncodeError is a ValueError
        reason = "nested too deeply" if isinstance(problem, RecursionError) else _reason(problem)
        raise error(f"{what} is not valid JSON ({reason}); {remedy}") from problem
    if _deeper_than(value, MAX_DEPTH):
        raise error(
            f"{what} is nested too deeply, expected at most {MAX_DEPTH} lists and objects in each other; {remedy}"
        )
    return value


def kind(value: object) -> str:
    """The JSON name of `value`'s type."""
    names = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")


def _reason(problem: ValueError) -> str:
    if isinstance(problem, UnicodeEncodeError):
        return "half a surrogate pair in a string"
    return str(problem)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"an object has the key {shown(twice)} twice")
    return found


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {_cut(digits)} is too large")
    return value


def _int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"the number {_cut(digits)} is too large")
    return int(digits)


def _cut(digits: str) -> str:
    return digits if len(digits) <= MAX_DIGITS else f"{digits[:20]}... of {len(digits):,} digits"


def _deeper_than(value: Any, limit: int) -> bool:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(limit):
        inner = (entry for outer in level for entry in (outer.values() if isinstance(outer, dict) else outer))
        level = [entry for entry in inner if isinstance(entry, dict | list)]
    return bool(level)
