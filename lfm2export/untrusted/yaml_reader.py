"""The one reader of YAML from outside: front matter of model cards, as texts, lists and mappings, nothing else.

A scalar stays the text that it is: `no` is Norwegian and not false, `1.10` a version and not a number; what YAML spells
as null is None. Tags construct nothing, and an alias is refused: nine lines of them stand for a billion entries.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

from lfm2export.errors import Lfm2ExportError
from lfm2export.untrusted.escape import one_line
from lfm2export.untrusted.paths import shown

#: What a scalar, a list or a mapping becomes.
Value: TypeAlias = "str | list[Value] | dict[str, Value] | None"

#: Bytes of a card's front matter, the results of many evaluations included.
MAX_YAML_BYTES = 1 << 20
#: Lists and mappings inside each other; evaluation results of the hub have 7.
MAX_DEPTH = 16

_NULLS = ("", "~", "null", "Null", "NULL")


def parse_yaml_mapping(text: str, what: object, error: type[Lfm2ExportError], remedy: str) -> dict[str, Value]:
    """The YAML mapping in `text`, called `what` in messages; empty where there is none.

    Raises:
        error: it is no YAML, or no mapping; is larger or nested deeper than a card's; holds an alias, a key twice, or
            a second document. The message ends with `remedy`.
    """
    import yaml

    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_YAML_BYTES:
        raise error(f"{what} has {size:,} bytes, expected at most {MAX_YAML_BYTES:,}; {remedy}")
    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # the one in C is 20 times as fast, and not everywhere
    try:
        value = _value(yaml.parse(text, Loader=loader))
    except yaml.MarkedYAMLError as problem:
        line = f"line {problem.problem_mark.line + 1}: " if problem.problem_mark is not None else ""
        raise error(f"{what} is not valid YAML ({line}{one_line(str(problem.problem))}); {remedy}") from problem
    except (yaml.YAMLError, ValueError) as problem:
        raise error(f"{what} is not valid YAML ({one_line(str(problem))}); {remedy}") from problem
    if value is None:
        return {}
    if not isinstance(value, dict):
        kind = "list" if isinstance(value, list) else "text"
        raise error(f"{what} holds a {kind}, expected a mapping of names to values; {remedy}")
    return value


def _value(events: Iterable[Any]) -> Value:
    """The one document of `events`, without recursion."""
    import yaml

    document: list[Value] = []
    open_lists: list[list[Value]] = [document]
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"line {event.start_mark.line + 1}: an alias, *{shown(event.anchor, 40)[1:-1]}")
        if isinstance(event, yaml.ScalarEvent):
            null = event.implicit[0] and event.value in _NULLS
            open_lists[-1].append(None if null else event.value)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            if len(open_lists) > MAX_DEPTH:
                raise ValueError(f"line {event.start_mark.line + 1}: nested deeper than {MAX_DEPTH}")
            open_lists.append([])
        elif isinstance(event, yaml.MappingEndEvent):
            entries = open_lists.pop()
            open_lists[-1].append(_mapping(entries))
        elif isinstance(event, yaml.SequenceEndEvent):
            entries = open_lists.pop()
            open_lists[-1].append(entries)
    if len(document) > 1:
        raise ValueError("more than one document")
    return document[0] if document else None


def _mapping(entries: list[Value]) -> Value:
    """`entries` are key, value, key, value, ..."""
    mapping: dict[str, Value] = {}
    for key, value in zip(entries[::2], entries[1::2], strict=True):
        if not isinstance(key, str):
            raise ValueError(f"a key is a {type(key).__name__}, expected a text")
        if key in mapping:
            raise ValueError(f"the key {shown(key)} is there twice")
        mapping[key] = value
    return mapping
