"""The tokenizer's files, so that every runtime finds the chat template where it looks for it.

transformers prefers chat_template.jinja, Transformers.js reads tokenizer_config.json only, onnxruntime-genai takes
either: so the same text goes to both. Where the source has a file and an embedded template that differ, the file is
right, as in transformers.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lfm2export.errors import TokenizerError

CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
LEGACY_TEMPLATE = "chat_template.json"
MORE_TEMPLATES = "additional_chat_templates"

#: Copied as they are, where the source has them.
COPIED = ("tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt")

#: The block that transformers' templates mark the assistant's tokens with; other Jinja engines stop at it.
_GENERATION = re.compile(r"\{%(?P<left>[-+]?)\s*(?P<end>end)?generation\s*(?P<right>[-+]?)%\}")


def portable_template(template: str) -> str:
    """`template` with `{% generation %}` blocks opened up: their content stays, rendered the same to the space.

    The tags become `{% if true %}` and `{% endif %}`, whose whitespace control and trimming are those of any block tag;
    to cut them out of the text would move the newlines around them.
    """

    def plain(tag: re.Match[str]) -> str:
        return f"{{%{tag['left']} {'endif' if tag['end'] else 'if true'} {tag['right']}%}}"

    return _GENERATION.sub(plain, template)


def read_chat_templates(folder: Path) -> dict[str, str]:
    """The source's chat templates by name, the usual one under "default"; empty for a base model.

    Raises:
        TokenizerError: a template file or tokenizer_config.json cannot be read.
    """
    templates: dict[str, str] = {}
    if (folder / TEMPLATE).is_file():
        templates["default"] = _read(folder / TEMPLATE)
    for path in sorted((folder / MORE_TEMPLATES).glob("*.jinja")):
        templates[path.stem] = _read(path)
    if not templates and (folder / CONFIG).is_file():
        templates = _named(_read_json(folder / CONFIG).get("chat_template"), folder / CONFIG)
    if not templates and (folder / LEGACY_TEMPLATE).is_file():
        templates = _named(_read_json(folder / LEGACY_TEMPLATE).get("chat_template"), folder / LEGACY_TEMPLATE)
    return templates


def write_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer of `source` into `folder`, its chat template embedded and beside it.

    Raises:
        TokenizerError: a file cannot be read.
    """
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    settings = _read_json(source / CONFIG) if (source / CONFIG).is_file() else {}
    templates = {name: portable_template(text) for name, text in read_chat_templates(source).items()}
    text = json.dumps(portable_settings(settings, templates), indent=2, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    for name, template in templates.items():
        path = folder / TEMPLATE if name == "default" else folder / MORE_TEMPLATES / f"{name}.jinja"
        path.parent.mkdir(exist_ok=True)
        path.write_text(template, encoding="utf-8", newline="")


def portable_settings(settings: Mapping[str, Any], templates: Mapping[str, str]) -> dict[str, Any]:
    """tokenizer_config.json as transformers 4 and 5 and Transformers.js all read it.

    transformers 5 writes the class TokenizersBackend and a list of `extra_special_tokens`; 4 knows neither (a list
    there is an error to it), while 5 still reads the older spellings.
    """
    kept = {name: value for name, value in settings.items() if name not in ("chat_template", "name_or_path", "backend")}
    if kept.get("tokenizer_class", "TokenizersBackend") == "TokenizersBackend":
        kept["tokenizer_class"] = "PreTrainedTokenizerFast"
    extra = kept.get("extra_special_tokens")
    if isinstance(extra, list):
        del kept["extra_special_tokens"]
        if extra:
            kept.setdefault("additional_special_tokens", extra)
    if list(templates) == ["default"]:
        kept["chat_template"] = templates["default"]
    elif templates:
        kept["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    return kept


def _named(value: Any, path: Path) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, dict) and all(isinstance(text, str) for text in value.values()):
        return dict(value)
    try:
        return {str(entry["name"]): str(entry["template"]) for entry in value}
    except (TypeError, KeyError) as error:
        raise TokenizerError(
            f"{path}: chat_template is a {type(value).__name__}, expected a text or a list of name and template; "
            "restore it from the source"
        ) from error


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return file.read()
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path} cannot be read ({error}); copy or download it again") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read(path))
    except ValueError as error:
        raise TokenizerError(f"{path} is not valid JSON ({error}); copy or download it again") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} holds a JSON {type(value).__name__}, expected an object; restore it")
    return value
