"""Front matter of a model card: what of the source's holds for the artifact, checked; and the artifact's own.

A licence is a statement in somebody's name: one that is there and cannot be read is refused, never lost. What else is
odd (a local path as the base model, as training tools write it; a tag of a thousand letters) is left out, and said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lfm2export.errors import SourceError
from lfm2export.package.plain import named
from lfm2export.untrusted.escape import one_line
from lfm2export.untrusted.paths import find_file, shown
from lfm2export.untrusted.text import read_text
from lfm2export.untrusted.yaml_reader import Value, parse_yaml_mapping

CARD = "README.md"

#: Names under which a licence lies beside the weights; in the artifact it has the first.
LICENSE_NAMES = ("LICENSE", "LICENSE.txt", "LICENSE.md")

#: Tags of this artifact, whatever the source has.
TAGS = ("transformers.js", "onnx", "onnxruntime", "onnxruntime-genai", "lfm2")

#: Tags and languages of one card that are taken over.
MAX_ENTRIES = 100

_REMEDY = "correct it, or remove the lines between the two --- and put a LICENSE file there"

#: Blank lines and comments, behind which front matter can be meant as well.
_PREFACE = re.compile(r"(?:[\s\ufeff]+|<!--.*?-->)*", re.DOTALL)
_OPENING = re.compile(r"---[ \t]*(?:\n|\Z)")
_CLOSING = re.compile(r"^---[ \t]*$", re.MULTILINE)
#: A line that states a licence where no front matter does, and the lines that are looked at.
_STATED = re.compile(r"\s*licen[cs]e\s*:", re.IGNORECASE)
_LOOKED_AT = 50
_LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_ -]{0,99}", re.ASCII)
_WORD = re.compile(r"[\w][\w.:+/ -]{0,99}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_ADDRESS = re.compile(r"https?://[!-~]{1,500}", re.ASCII)


@dataclass(frozen=True)
class SourceCard:
    """What the source's card states, each as the hub wants it; None or empty where it says nothing.

    license: one identifier or several. base_model: hub ids. dropped: what was left out, by name.
    """

    license: str | tuple[str, ...] | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    base_model: tuple[str, ...] = ()
    dropped: tuple[str, ...] = field(default=(), compare=False)


def read_source_card(folder: Path) -> SourceCard:
    """The front matter of `folder`/README.md, empty where there is none.

    Raises:
        SourceError: the card cannot be read, its front matter is damaged, or states a licence that is none.
    """
    path = find_file(folder, _card_name(folder), SourceError)
    text = read_text(path, SourceError, folder=folder) if path is not None else ""
    what = f"the front matter of {path}"
    lines = _lines(text.replace("\r\n", "\n").replace("\r", "\n"), what)
    if lines is None:
        return SourceCard()
    matter = parse_yaml_mapping(lines, what, SourceError, _REMEDY)
    _check_names(matter, what)
    license_link, languages, tags, bases = (_texts(matter.get(name)) for name in _LISTED)
    kept = {
        "license_link": [entry for entry in license_link if entry in LICENSE_NAMES or _ADDRESS.fullmatch(entry)][:1],
        "language": _plain(languages),
        "tags": _plain(tags),
        "base_model": [entry for entry in bases if _HUB_ID.fullmatch(entry)][:MAX_ENTRIES],
    }
    lost = [name for name in kept if _given(matter.get(name)) != len(kept[name])]
    licenses = _licenses(matter.get("license"), what)
    return SourceCard(
        license=licenses[0] if len(licenses) == 1 else tuple(licenses) or None,
        license_name=_license_name(matter.get("license_name"), what),
        license_link=next(iter(kept["license_link"]), None),
        language=tuple(kept["language"]),
        tags=tuple(kept["tags"]),
        base_model=tuple(kept["base_model"]),
        dropped=named(lost, CARD),
    )


def _card_name(folder: Path) -> str:
    """README.md, or the spelling of it that `folder` has alone (readme.md)."""
    names = sorted(path.name for path in folder.iterdir() if path.name.lower() == CARD.lower())
    return CARD if CARD in names or not names else names[0]


def _lines(text: str, what: str) -> str | None:
    """What stands between the two --- of `text`; None where it has no front matter."""
    preface = _PREFACE.match(text)
    opening = _OPENING.match(text, preface.end() if preface is not None else 0)
    if opening is None:
        stated = next((line for line in text.split("\n")[:_LOOKED_AT] if _STATED.match(line)), None)
        if stated is not None:
            raise SourceError(
                f"{what} is missing, and a line of the text states a license ({shown(stated.strip(), 60)}); put it "
                "between two lines --- at the top, or put a LICENSE file there and remove the line"
            )
        return None
    closing = _CLOSING.search(text, opening.end())
    if closing is None:
        raise SourceError(f"{what} begins with --- and does not end: put a line --- behind it, or remove the first one")
    return text[opening.end() : closing.start()]


def _check_names(matter: Mapping[str, Value], what: str) -> None:
    """That no other spelling states a licence which the hub would not see."""
    for name in matter:
        usual = name.strip().lower().replace("-", "_").replace("licence", "license")
        if usual in _LICENSE_KEYS and name != usual:
            raise SourceError(f"{what} has the key {shown(name)}, expected {usual!r}; {_REMEDY}")


_LICENSE_KEYS = ("license", "license_name", "license_link")
_LISTED = ("license_link", "language", "tags", "base_model")


def front_matter(card: SourceCard, license_file: bool, repo_id: str | None) -> dict[str, Any]:
    """The metadata that the hub reads. The licence is as the source states it, `other` where it does not.

    Args:
        license_file: the source has one, and it lies beside the card as LICENSE.
        repo_id: of the source on the hub.
    """
    stated: dict[str, Any] = {"license": _one_or_list(card.license) or "other"}
    if card.license_name is not None:
        stated["license_name"] = card.license_name
    if card.license_link is not None and card.license_link not in LICENSE_NAMES:
        stated["license_link"] = card.license_link
    elif license_file and (card.license_link is not None or stated["license"] == "other"):
        stated["license_link"] = "LICENSE"
    if license_file and stated["license"] == "other" and stated["license_link"] == "LICENSE":
        stated.setdefault("license_name", "see-license-file")
    if card.language:
        stated["language"] = list(card.language)
    base = repo_id or _one_or_list(card.base_model)
    matter: dict[str, Any] = {"library_name": "transformers.js", "pipeline_tag": "text-generation", **stated}
    if base:
        matter["base_model"] = base
        if repo_id:
            matter["base_model_relation"] = "quantized"
    matter["tags"] = list(dict.fromkeys([*TAGS, *card.tags]))
    return matter


def dump(matter: Mapping[str, Any]) -> str:
    """`matter` as YAML, in which every text reads back as that text."""
    import yaml

    return str(yaml.safe_dump(dict(matter), allow_unicode=True)).strip()


def _one_or_list(value: str | tuple[str, ...] | None) -> str | list[str] | None:
    if value is None or isinstance(value, str):
        return value
    return (value[0] if len(value) == 1 else list(value)) if value else None


def _licenses(value: Value, what: str) -> list[str]:
    entries = value if isinstance(value, list) else [value] if value is not None else []
    for entry in entries:
        if not isinstance(entry, str) or not _LICENSE.fullmatch(entry):
            raise SourceError(
                f"{what} states the license {shown(entry)}, expected an identifier such as apache-2.0; {_REMEDY}"
            )
    return [entry for entry in entries if isinstance(entry, str)]


def _license_name(value: Value, what: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > 100 or one_line(value) != value:
        raise SourceError(f"{what} states the license_name {shown(value)}, expected a short text; {_REMEDY}")
    return value


def _texts(value: Value) -> list[str]:
    entries = value if isinstance(value, list) else [value]
    return [entry for entry in entries if isinstance(entry, str)]


def _given(value: Value) -> int:
    """How many entries a key has."""
    return len(value) if isinstance(value, list) else 0 if value is None else 1


def _plain(entries: list[str]) -> list[str]:
    return [entry for entry in entries if _WORD.fullmatch(entry)][:MAX_ENTRIES]
