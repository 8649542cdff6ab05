"""How much longer a tokenizer.json can make a text: bounded by what it says, for no trial speaks of other texts.

A tokenizer is tried on a few texts in a process with limits, and then encodes in this one, where a template of the same
stranger may write what it grows by. A chain of components multiplies, so what is bounded is the product.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lfm2export.errors import TokenizerError

#: What repairs a tokenizer.json.
SAVE_AGAIN = "copy or download it again, or save it again with save_pretrained"

#: Characters that a chain may make of one, beside what each kind of Unicode's and of bytes does once.
MAX_GROWTH = 8
#: Normalizers and pre-tokenizers, or decoders, those in sequences too; tokenizers of the family have 3.
MAX_COMPONENTS = 64

#: Characters that one of these makes of one, at most. Once it is harmless: a second time, what the first made can be
#: replaced by what grows again.
_REPEATED = {"ByteLevel": 4, "NFKC": 18, "NFKD": 18, "NFD": 4, "NFC": 3, "Lowercase": 3, "BertNormalizer": 12}

#: The longest text of the map that SentencePiece's nmt_nfkc puts into a Precompiled, in bytes.
_LONGEST_MAPPED = 33

#: A regex of this form takes a character or more wherever it matches; another may match nothing, between any two.
_TAKES = re.compile(r"(?:[^*?|^$\\(){}]|\\[sSdDwWnrt])+(?:\{[1-9]\d*,?\d*\})?\+?", re.ASCII)


def check_growth(path: Path, content: Mapping[str, Any]) -> None:
    """That no text becomes much longer on its way to tokens, or back.

    Args:
        content: of the tokenizer.json at `path`.

    Raises:
        TokenizerError: one could.
    """
    for parts in (("normalizer", "pre_tokenizer"), ("decoder",)):
        way = " and ".join(parts)
        growth, kinds = 1.0, list[str]()
        for component in (one for part in parts for one in _components(content.get(part))):
            kind = component["type"]
            growth *= _REPEATED.get(kind, 1) if kind in kinds else 1
            growth *= _growth(component)
            kinds.append(kind)
        if len(kinds) > MAX_COMPONENTS:
            raise TokenizerError(
                f"{path} has {len(kinds):,} components in its {way}, expected at most {MAX_COMPONENTS}; {SAVE_AGAIN}"
            )
        if growth > MAX_GROWTH:
            raise TokenizerError(
                f"{path}: its {way} can make a text {growth:,.3g} times as long, expected at most {MAX_GROWTH} times; "
                f"{SAVE_AGAIN}, or do not trust its source"
            )


def _components(value: Any) -> Iterator[Mapping[str, Any]]:
    """`value`, a normalizer or the like, and all that it holds, however deep: the reader of JSON bounds that."""
    if isinstance(value, dict) and isinstance(value.get("type"), str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _components(inner)


def _growth(component: Mapping[str, Any]) -> float:
    """How many characters `component` can make of one, at most, and no less than one."""
    match component:
        case {"type": "Replace", "content": str(content), "pattern": pattern}:
            return _replaced(pattern, content)
        case {"type": "Prepend", "prepend": str(text)}:  # before each text between two special tokens
            return 1 + len(text)
        case {"type": "Metaspace"}:
            return 2
        case {"type": "Precompiled", "precompiled_charsmap": str(text)}:
            return max(1, _longest_mapped(text) / _LONGEST_MAPPED)
    return 1


def _replaced(pattern: Any, content: str) -> float:
    if not content:
        return 1
    text = pattern.get("String") if isinstance(pattern, dict) else pattern
    if isinstance(text, str) and text:
        return max(1, len(content) / len(text))
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    return len(content) + (not (isinstance(regex, str) and _TAKES.fullmatch(regex)))


def _longest_mapped(text: str) -> int:
    """Bytes of the longest text that a map of SentencePiece's can give: its trie with a length, then texts that end in
    zero."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return 0  # no map: the library says so
    return max(map(len, data[4 + int.from_bytes(data[:4], "little") :].split(b"\0")))
