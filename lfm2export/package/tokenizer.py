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

from lfm2export.text.templates import DEFAULT, MORE_TEMPLATES, TEMPLATE, TOKENIZER_CONFIG, read_chat_templates
from lfm2export.text.tokenizer_file import read_tokenizer_settings

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


def write_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer of `source` into `folder`, its chat template embedded and beside it.

    Raises:
        TokenizerError: a file cannot be read.
    """
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    settings = read_tokenizer_settings(source)
    templates = {name: portable_template(text) for name, text in read_chat_templates(source).items()}
    text = json.dumps(portable_settings(settings, templates), indent=2, ensure_ascii=False)
    (folder / TOKENIZER_CONFIG).write_text(text + "\n", encoding="utf-8")
    for name, template in templates.items():
        path = folder / TEMPLATE if name == DEFAULT else folder / MORE_TEMPLATES / f"{name}.jinja"
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
    if list(templates) == [DEFAULT]:
        kept["chat_template"] = templates[DEFAULT]
    elif templates:
        kept["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    return kept
