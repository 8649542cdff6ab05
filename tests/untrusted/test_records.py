"""JSON values as typed records: what fits is one, what does not is named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pytest

from lfm2export.untrusted.records import Mismatch, decode


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Inner:
    count: int
    colour: Colour | None


@dataclass(frozen=True)
class Outer:
    name: str
    good: bool
    size: float
    inner: tuple[Inner, ...]
    sizes: Mapping[str, float]
    note: str = ""


VALUE: dict[str, Any] = {
    "name": "x",
    "good": True,
    "size": 3,
    "inner": [{"count": 1, "colour": "red"}, {"count": 2, "colour": None}],
    "sizes": {"a": "Infinity"},
    "unknown": [],
}


def test_what_fits_is_a_record() -> None:
    found = decode(VALUE, Outer)
    assert found == Outer("x", True, 3.0, (Inner(1, Colour.RED), Inner(2, None)), {"a": math.inf})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": 5}, r"d\.name is a JSON number, expected a string"),
        ({"name": None}, r"d\.name is None, expected a string"),
        ({"good": 1}, r"d\.good is a JSON number, expected true or false"),
        ({"size": True}, r"d\.size is a JSON boolean, expected a number"),
        ({"size": "3"}, r"d\.size is a JSON string, expected a number"),
        ({"inner": "ab"}, r"d\.inner is a JSON string, expected a list"),
        ({"inner": [{"count": 1.0, "colour": None}]}, r"d\.inner\[0\]\.count is a JSON number, expected an integer"),
        ({"inner": [{"count": 1, "colour": "blue"}]}, r"d\.inner\[0\]\.colour is 'blue', expected one of red"),
        ({"inner": [{"count": 1, "colour": ["red"]}]}, r"colour is a JSON list, expected a string"),
        ({"inner": [{"count": 1}]}, r"d\.inner\[0\] has no 'colour'"),
        ({"sizes": []}, r"d\.sizes is a JSON list, expected an object"),
        ({"sizes": {"\x1b": "x"}}, r"d\.sizes\['\\x1b'\] is a JSON string"),
    ],
)
def test_what_does_not_is_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(Mismatch, match=message):
        decode(VALUE | changed, Outer, "d")
