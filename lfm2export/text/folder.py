"""All that a checkpoint says about tokens and texts, read once and checked before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lfm2export.spec import ModelSpec
from lfm2export.text.templates import check_templates, read_chat_templates
from lfm2export.text.token_ids import TokenIds, read_token_ids
from lfm2export.text.tokenizer_file import (
    SpecialTokens,
    TokenizerFile,
    check_tokenizer,
    read_special_tokens,
    read_tokenizer_file,
    read_tokenizer_settings,
)


@dataclass(frozen=True)
class TextFiles:
    """settings: tokenizer_config.json, {} where there is none. templates: by name; none for a base model."""

    tokenizer: TokenizerFile
    settings: Mapping[str, Any] = field(repr=False)
    special: SpecialTokens
    templates: Mapping[str, str] = field(repr=False)
    tokens: TokenIds


def read_text_files(
    folder: Path, config: Mapping[str, Any], generation: Mapping[str, Any] | None, vocab_size: int
) -> TextFiles:
    """What `folder` says, with its tokenizer and chat templates tried.

    Args:
        config: its config.json. generation: its generation_config.json, if there is one.
        vocab_size: rows of the embedding.

    Raises:
        TokenizerError: the tokenizer is missing, damaged, or does not fit the model; a template does not work.
        ConfigError: no file says where a text ends, or an id is not that of a token.
    """
    settings = read_tokenizer_settings(folder)
    special = read_special_tokens(folder, settings)
    templates = read_chat_templates(folder)
    tokenizer = read_tokenizer_file(folder)
    rendered = check_templates(templates, special.named, folder)
    check_tokenizer(tokenizer, vocab_size, rendered)
    tokens = read_token_ids(config, generation, tokenizer, special, templates, vocab_size)
    return TextFiles(tokenizer, settings, special, templates, tokens)


def default_length(settings: Mapping[str, Any], spec: ModelSpec) -> int:
    """Tokens of prompt and answer together where nobody asks for more: `model_max_length` of tokenizer_config.json.

    It was chosen for training or serving, and is no limit of the model's. transformers writes 1e30 where there is none.
    """
    length = as_length(settings.get("model_max_length"))
    return spec.max_position_embeddings if length is None else min(length, spec.max_position_embeddings)


def as_length(value: object) -> int | None:
    """`value` as a number of tokens, also where it is written as 512.0; None where it is none of at least one."""
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value >= 1 and value == int(value)
    return int(value) if whole else None  # type: ignore[call-overload]
