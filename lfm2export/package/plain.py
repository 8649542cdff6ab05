"""What may stand in a JSON file that is published: keys that somebody reads, each with a value of its kind.

An artifact's config is read by transformers, Transformers.js and onnxruntime-genai, and a key of it may name code to
run (`auto_map`, `custom_pipelines`) or undo what a build did (`quantization_config`). Names of such keys cannot be
listed: every release of every reader may add one. So the keys that are known are listed, and the rest is left out and
said: a reader of this artifact has no use for a key that no reader of this architecture knows. A known key with a value
that no reader takes is refused: left out, it would change what the model does, and say so too late.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from lfm2export.errors import Lfm2ExportError
from lfm2export.untrusted.escape import one_line
from lfm2export.untrusted.paths import shown
from lfm2export.untrusted.text import without_mark

#: Whether a value is of a key's kind.
Kind = Callable[[Any], bool]

#: Characters of a text in a config; templates are no part of it.
MAX_TEXT = 500
_VERSION = re.compile(r"\d[0-9A-Za-z.+-]{0,31}", re.ASCII)
#: Keys that a report of what was left out names for one file.
MAX_NAMED = 20


def boolean(value: Any) -> bool:
    return isinstance(value, bool)


def integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def text(value: Any) -> bool:
    """Not a long one."""
    return isinstance(value, str) and len(value) <= MAX_TEXT


def between(least: float, most: float, *, whole: bool = False) -> Kind:
    """Numbers from `least` to `most`; `whole`: integers alone."""
    return lambda value: (integer if whole else number)(value) and least <= value <= most


def identifier(value: Any) -> bool:
    """A name of an argument: "attention_mask"."""
    return isinstance(value, str) and len(value) <= 64 and value.isascii() and value.isidentifier()


def version(value: Any) -> bool:
    """Of a library: "4.57.1", "5.0.0.dev0"."""
    return isinstance(value, str) and _VERSION.fullmatch(value) is not None


def one_of(*values: str) -> Kind:
    return lambda value: isinstance(value, str) and value in values


def either(*kinds: Kind) -> Kind:
    return lambda value: any(kind(value) for kind in kinds)


def list_of(kind: Kind) -> Kind:
    return lambda value: isinstance(value, list) and all(kind(entry) for entry in value)


def mapping_of(kind: Kind) -> Kind:
    """An object whose values are of `kind`."""
    return lambda value: isinstance(value, dict) and all(kind(entry) for entry in value.values())


def keep(
    values: Mapping[str, Any],
    kinds: Mapping[str, Kind],
    file: str,
    error: type[Lfm2ExportError],
    *,
    unsaid: Collection[str] = (),
    loose: Collection[str] = (),
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The entries of `values` that `kinds` knows, null or of their kind; and the names of the others, for the manifest.

    file: what `values` are from, such as "config.json". unsaid: keys whose loss is no news.
    loose: known keys that change nothing, and are left out too where their value is of another kind.

    Raises:
        error: a known key has a value of another kind.
    """
    kept = {
        name: value
        for name, value in values.items()
        if name in kinds and (name not in loose or value is None or kinds[name](value))
    }
    for name, value in kept.items():
        if value is not None and not kinds[name](value):
            raise error(f"{file}: {name} is {shown(value)}, which no reader of it takes; correct it, or remove it")
    return kept, named([name for name in values if name not in kept and name not in unsaid], file)


def named(names: Sequence[str], file: str) -> tuple[str, ...]:
    """`names` as entries of the manifest: "config.json: auto_map". Of very many, how many more there are."""
    said = [f"{file}: {one_line(name)[:60]}" for name in sorted(names)]
    return tuple(said if len(said) <= MAX_NAMED else [*said[:MAX_NAMED], f"{file}: {len(said) - MAX_NAMED} more"])


def json_bytes(value: Any) -> bytes:
    """`value` as every JSON file of an artifact is written."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def json_bytes_like(data: bytes, before: Any, after: Any) -> bytes:
    """`after` in bytes: those of the source, `data`, where nothing of `before` was changed, so that hashes agree."""
    return without_mark(data) if after == before else json_bytes(after)
