"""A JSON value from outside as a record of known fields: parity.json, consumers.json, build.json.

A record is a dataclass whose hints are str, bool, int, float, a StrEnum, another record, X | None, tuple[X, ...] or
Mapping[str, X]. Every value is of its type before anybody indexes it; fields that the record does not have are ignored.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import StrEnum
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from lfm2export.untrusted.json_reader import kind as kind_of
from lfm2export.untrusted.paths import shown

#: How a number that is not finite is written.
INFINITY = "Infinity"


class Mismatch(ValueError):
    """The value is not of its type: which, what it is, what was expected."""


def decode(value: Any, kind: Any, place: str = "the document") -> Any:
    """`value` as a `kind`; `place` says in messages where it stands.

    Raises:
        Mismatch: it is something else.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return decode(value, next(argument for argument in arguments if argument is not type(None)), place)
    if is_dataclass(kind) and isinstance(kind, type):
        return _record(value, kind, place)
    if origin is tuple:
        _expect(value, list, "a list", place)
        return tuple(decode(item, arguments[0], f"{place}[{index}]") for index, item in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        _expect(value, dict, "an object", place)
        return {key: decode(item, arguments[1], f"{place}[{shown(key, 40)}]") for key, item in value.items()}
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        _expect(value, str, "a string", place)
        if value not in list(kind):
            raise Mismatch(f"{place} is {shown(value)}, expected one of {', '.join(kind)}")
        return kind(value)
    if kind is Any:
        return value
    if kind is float:
        if value == INFINITY:
            return math.inf
        _expect(value, int | float, "a number", place)
        return float(value)
    _expect(value, kind, {int: "an integer", str: "a string", bool: "true or false"}[kind], place)
    return value


def _record(value: Any, kind: Any, place: str) -> Any:
    _expect(value, dict, "an object", place)
    hints = _hints(kind)
    found = {}
    for field in fields(kind):
        if field.name in value:
            found[field.name] = decode(value[field.name], hints[field.name], f"{place}.{field.name}")
        elif field.default is MISSING and field.default_factory is MISSING:
            raise Mismatch(f"{place} has no {field.name!r}")
    return kind(**found)


_hints = cache(get_type_hints)


def _expect(value: Any, kind: Any, name: str, place: str) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise Mismatch(f"{place} is {shown(value) if value is None else f'a JSON {kind_of(value)}'}, expected {name}")
