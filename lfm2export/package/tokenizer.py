"""The tokenizer's files, so that every runtime finds the chat template where it looks for it.

transformers prefers chat_template.jinja, Transformers.js reads tokenizer_config.json only, onnxruntime-genai takes
either: so the same text goes to both. Where the source has a file and an embedded template that differ, the file is
right, as in transformers.

tokenizer.json says nothing of truncation and padding in the artifact: what a training run left there would cut a
user's prompt, in every runtime that reads the file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lfm2export.errors import TokenizerError
from lfm2export.package import plain
from lfm2export.text.folder import TextFiles, as_length
from lfm2export.text.templates import DEFAULT, MORE_TEMPLATES, TEMPLATE, TOKENIZER_CONFIG
from lfm2export.text.tokenizer_file import NAMED_TOKENS, SPECIAL_TOKENS_MAP, TOKENIZER
from lfm2export.text.tokenizer_growth import SAVE_AGAIN
from lfm2export.untrusted.json_reader import MAX_TOKENIZER_BYTES, kind, parse_json
from lfm2export.untrusted.paths import find_file, shown
from lfm2export.untrusted.text import decode, read_bytes

ADDED_TOKENS = "added_tokens.json"
VOCABULARY = "vocab.json"
MERGES = "merges.txt"

#: Classes of transformers whose name makes a reader of tokenizer.json do the right thing. All others become the plain
#: one, which takes everything from the file; a name of none of transformers' would ask for somebody's code.
CLASSES = (
    "CodeLlamaTokenizer",
    "CodeLlamaTokenizerFast",
    "GPT2Tokenizer",
    "GPT2TokenizerFast",
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "PreTrainedTokenizer",
    "PreTrainedTokenizerFast",
    "Qwen2Tokenizer",
    "Qwen2TokenizerFast",
)
PLAIN_CLASS = "PreTrainedTokenizerFast"

#: The block that transformers' templates mark the assistant's tokens with; other Jinja engines stop at it.
_GENERATION = re.compile(r"\{%(?P<left>[-+]?)\s*(?P<end>end)?generation\s*(?P<right>[-+]?)%\}")

_FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")


@dataclass(frozen=True)
class TokenizerFiles:
    """files: name -> the bytes to write. settings: tokenizer_config.json without templates. dropped: names of what was
    left out."""

    files: Mapping[str, bytes]
    settings: Mapping[str, Any]
    dropped: tuple[str, ...]


def portable_template(template: str) -> str:
    """`template` with `{% generation %}` blocks opened up: their content stays, rendered the same to the space.

    The tags become `{% if true %}` and `{% endif %}`, whose whitespace control and trimming are those of any block tag;
    to cut them out of the text would move the newlines around them.
    """

    def plain(tag: re.Match[str]) -> str:
        return f"{{%{tag['left']} {'endif' if tag['end'] else 'if true'} {tag['right']}%}}"

    return _GENERATION.sub(plain, template)


def read_tokenizer_files(folder: Path, text: TextFiles, vocab_size: int) -> TokenizerFiles:
    """The tokenizer's files of `folder`, but for chat templates, checked and as the artifact has them.

    Args:
        text: what was read of the same folder.

    Raises:
        TokenizerError: one is damaged, leads out of the folder, or names a token that the model does not have.
    """
    files = {TOKENIZER: text.tokenizer.data}
    dropped = [*plain.named(text.tokenizer.of_training, TOKENIZER)]
    for name, checked in (
        (SPECIAL_TOKENS_MAP, partial(_special_tokens_map, text.tokenizer.added)),
        (ADDED_TOKENS, partial(_token_numbers, vocab_size)),
        (VOCABULARY, partial(_token_numbers, vocab_size)),
    ):
        path = find_file(folder, name, TokenizerError)
        if path is None:
            continue
        data = read_bytes(path, TokenizerError, MAX_TOKENIZER_BYTES, folder=folder)
        value = parse_json(data, path, TokenizerError, SAVE_AGAIN)
        if not isinstance(value, dict):
            raise TokenizerError(f"{path} holds a JSON {kind(value)}, expected an object; {SAVE_AGAIN}")
        kept, left_out = checked(value, path)
        files[name] = plain.json_bytes_like(data, value, kept)
        dropped += left_out
    merges = find_file(folder, MERGES, TokenizerError)
    if merges is not None:
        data = read_bytes(merges, TokenizerError, MAX_TOKENIZER_BYTES, folder=folder)
        files[MERGES] = decode(data, merges, TokenizerError, SAVE_AGAIN).encode()
    settings, left_out = portable_settings(text.settings, text.tokenizer.added)
    return TokenizerFiles(files, settings, (*dropped, *left_out))


def portable_settings(
    settings: Mapping[str, Any], added: Collection[str] = ()
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """tokenizer_config.json as transformers 4 and 5 and Transformers.js all read it, without its templates; and the
    names of what was left out.

    transformers 5 writes the class TokenizersBackend and a list of `extra_special_tokens`; 4 knows neither (a list
    there is an error to it), while 5 still reads the older spellings.

    added: texts of the added tokens. A setting NAME_token is one of a model's own kind ("image_token") only where its
    value is among them; else it may be somebody's password ("hf_token").

    Raises:
        TokenizerError: a setting has a value that no reader takes.
    """
    kinds = {**_token_names(settings, added), **_SETTINGS}
    kept, dropped = plain.keep(settings, kinds, TOKENIZER_CONFIG, TokenizerError, unsaid=_OF_NO_USE)
    dropped = (*dropped, *_without_strangers(kept, added, TOKENIZER_CONFIG))
    if kept.get("model_max_length") is not None:
        kept["model_max_length"] = length = as_length(kept["model_max_length"])
        if length is None:
            del kept["model_max_length"]
            dropped = (*dropped, *plain.named(["model_max_length"], TOKENIZER_CONFIG))
    stated = settings.get("tokenizer_class")
    if stated not in CLASSES:
        kept["tokenizer_class"] = PLAIN_CLASS
        if stated not in (None, "TokenizersBackend"):  # the latter is the plain one by its name in transformers 5
            dropped = (*dropped, *plain.named(["tokenizer_class"], TOKENIZER_CONFIG))
    extra = kept.get("extra_special_tokens")
    if isinstance(extra, list):
        del kept["extra_special_tokens"]
        if extra:
            kept.setdefault("additional_special_tokens", extra)
    return kept, dropped


def with_templates(settings: Mapping[str, Any], templates: Mapping[str, str]) -> dict[str, Any]:
    """`settings` with `templates` embedded, as Transformers.js reads them."""
    if list(templates) == [DEFAULT]:
        return {**settings, "chat_template": templates[DEFAULT]}
    if templates:
        return {**settings, "chat_template": [{"name": name, "template": text} for name, text in templates.items()]}
    return dict(settings)


def template_files(templates: Mapping[str, str]) -> dict[str, str]:
    """Path in the artifact -> text. Names are those that `read_chat_templates` let pass."""
    return {TEMPLATE if name == DEFAULT else f"{MORE_TEMPLATES}/{name}.jinja": text for name, text in templates.items()}


def _is_added_token(value: Any) -> bool:
    """A token as transformers writes it: its text, and how it is matched."""
    if not isinstance(value, dict) or not plain.text(value.get("content")):
        return False
    return all(
        (name in _FLAGS and isinstance(entry, bool))
        or name == "content"
        or (name == "__type" and entry == "AddedToken")
        or (name == "id" and plain.integer(entry))
        for name, entry in value.items()
    )


def _content(value: Any) -> Any:
    """The text of a token, None where `value` is none."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


_SPECIAL = plain.either(plain.text, _is_added_token)

#: Settings that may be an object of tokens by name.
_TOKENS_BY_NAME = ("extra_special_tokens", "model_specific_special_tokens")


def _token_names(values: Mapping[str, Any], added: Collection[str]) -> dict[str, plain.Kind]:
    """The keys of `values` that name a token: the usual ones, and NAME_token of a token in `added`."""
    others = [name for name, value in values.items() if name.endswith("_token") and _content(value) in added]
    return dict.fromkeys((*NAMED_TOKENS, *others), _SPECIAL)


def _without_strangers(kept: dict[str, Any], added: Collection[str], file: str) -> tuple[str, ...]:
    """Take those out of `kept`'s tokens by name that are none of `added`; their names, for the manifest."""
    lost = []
    for name in _TOKENS_BY_NAME:
        if isinstance(kept.get(name), dict):
            lost += [f"{name}.{key}" for key, value in kept[name].items() if _content(value) not in added]
            kept[name] = {key: value for key, value in kept[name].items() if _content(value) in added}
    return plain.named(lost, file)


#: Every setting of tokenizer_config.json that a reader of tokenizer.json knows, beside NAME_token.
_SETTINGS: Mapping[str, plain.Kind] = {
    "add_bos_token": plain.boolean,
    "add_eos_token": plain.boolean,
    "add_prefix_space": plain.boolean,
    "added_tokens_decoder": lambda value: (
        plain.mapping_of(_is_added_token)(value) and all(name.isdecimal() for name in value)
    ),
    "additional_special_tokens": plain.list_of(_SPECIAL),
    "clean_up_tokenization_spaces": plain.boolean,
    "do_lower_case": plain.boolean,
    "errors": plain.one_of("ignore", "replace", "strict"),
    "extra_special_tokens": plain.either(plain.list_of(_SPECIAL), plain.mapping_of(_SPECIAL)),
    "keep_accents": plain.boolean,
    "legacy": plain.boolean,
    "model_input_names": plain.list_of(plain.identifier),
    "model_max_length": plain.number,
    "model_specific_special_tokens": plain.mapping_of(_SPECIAL),
    "padding_side": plain.one_of("left", "right"),
    "remove_space": plain.boolean,
    "spaces_between_special_tokens": plain.boolean,
    "split_special_tokens": plain.boolean,
    "strip_accents": plain.boolean,
    "tokenizer_class": lambda value: True,  # see CLASSES
    "trim_offsets": plain.boolean,
    "truncation_side": plain.one_of("left", "right"),
    "use_default_system_prompt": plain.boolean,
    "use_fast": plain.boolean,
}

#: What transformers writes about the folder and the library that it had; templates have their own place.
_OF_NO_USE = (
    "backend",
    "chat_template",
    "is_local",
    "local_files_only",
    "name_or_path",
    "special_tokens_map_file",
    "tokenizer_file",
)


def _special_tokens_map(
    added: Collection[str], value: dict[str, Any], path: Path
) -> tuple[dict[str, Any], tuple[str, ...]]:
    listed = {name: _SETTINGS[name] for name in ("additional_special_tokens", "extra_special_tokens")}
    kept, dropped = plain.keep(value, {**_token_names(value, added), **listed}, SPECIAL_TOKENS_MAP, TokenizerError)
    return kept, (*dropped, *_without_strangers(kept, added, SPECIAL_TOKENS_MAP))


def _token_numbers(vocab_size: int, value: dict[str, Any], path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    for token, number in value.items():
        if not plain.integer(number) or not 0 <= number < vocab_size:
            raise TokenizerError(
                f"{path} gives the token {shown(token)} the id {shown(number)}, expected one of the "
                f"{vocab_size} of the model; {SAVE_AGAIN}"
            )
    return value, ()
