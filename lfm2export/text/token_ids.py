"""Which tokens begin, end and pad a text: what the files of a folder say together, for they do not always agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfm2export.errors import ConfigError, TokenizerError
from lfm2export.text.sandbox import SandboxError
from lfm2export.text.templates import end_of_turn, read_chat_templates
from lfm2export.text.tokenizer_file import (
    SPECIAL_TOKENS_MAP,
    TOKENIZER,
    SpecialTokens,
    TokenizerFile,
    read_special_tokens,
    read_tokenizer_file,
    read_tokenizer_settings,
)
from lfm2export.untrusted.paths import shown

#: The token that ends a turn in LFM2's ChatML.
END_OF_TURN = "<|im_end|>"

#: Stop tokens of one model; runtimes compare each token with all of them.
MAX_STOPS = 64


@dataclass(frozen=True)
class TokenIds:
    """`eos` are all the ids that stop generation, `end_of_turn` first; config.json has room for that one only in the
    card's loop, which compares with a single id."""

    bos: int | None
    pad: int | None
    eos: tuple[int, ...]

    @property
    def end_of_turn(self) -> int:
        return self.eos[0]


def read_token_ids(
    config: Mapping[str, Any],
    generation: Mapping[str, Any] | None,
    tokenizer: TokenizerFile | None,
    special: SpecialTokens,
    templates: Mapping[str, str],
    vocab_size: int,
) -> TokenIds:
    """The special token ids of a model with an embedding of `vocab_size` rows.

    Generation stops at every token that some file calls the end: config.json, generation_config.json, the eos_token of
    tokenizer_config.json, and what the chat template writes after an answer. For bos and pad, generation_config.json
    goes before config.json, as in transformers' generate, and both before tokenizer_config.json.

    Args:
        generation: generation_config.json, if there is one. tokenizer: None for a folder without one.

    Raises:
        ConfigError: no file says where a text ends, or an id is not that of a token.
        TokenizerError: the eos_token is not in the vocabulary, or the chat template fails.
    """
    vocabulary: Mapping[str, int] = tokenizer.vocabulary if tokenizer is not None else {}
    files = [("generation_config.json", generation or {}), ("config.json", config)]

    def single(kind: str) -> int | None:
        ids = [i for file, content in files for i in _ids(file, f"{kind}_token_id", content, vocab_size)]
        named = special.named.get(f"{kind}_token")
        if not ids and named is not None and named in vocabulary:
            ids = [vocabulary[named]]
        return ids[0] if ids else None

    stated = [i for file, content in files for i in _ids(file, "eos_token_id", content, vocab_size)]
    if tokenizer is not None:
        stated += [_eos_id(tokenizer, token) for token in special.eos]
    turn = [] if tokenizer is None else _turn_ends(tokenizer, special, templates, stated)
    stops = tuple(dict.fromkeys([*turn, *stated]))
    if not stops:
        raise ConfigError("no file names an eos_token_id; add it to config.json as the source has it")
    if len(stops) > MAX_STOPS:
        raise ConfigError(f"the files name {len(stops)} stop tokens, expected at most {MAX_STOPS}; remove the others")
    if max(stops) >= vocab_size:
        raise ConfigError(f"the stop token {max(stops)} is not below vocab_size {vocab_size}; correct {TOKENIZER}")
    return TokenIds(bos=single("bos"), pad=single("pad"), eos=stops)


def folder_token_ids(
    folder: Path, config: Mapping[str, Any], generation: Mapping[str, Any] | None, vocab_size: int
) -> TokenIds:
    """:func:`read_token_ids` of what lies in `folder`.

    Raises:
        ConfigError, TokenizerError: as there, or a file of the tokenizer is damaged.
    """
    has_tokenizer = (folder / TOKENIZER).exists()
    return read_token_ids(
        config,
        generation,
        read_tokenizer_file(folder) if has_tokenizer else None,
        read_special_tokens(folder, read_tokenizer_settings(folder)),
        read_chat_templates(folder) if has_tokenizer else {},
        vocab_size,
    )


def _ids(file: str, name: str, content: Mapping[str, Any], vocab_size: int) -> list[int]:
    """The id or ids of that name; none where the file does not say."""
    value = content.get(name)
    if value is None:
        return []
    many = name.startswith("eos")
    ids: Sequence[Any] = value if isinstance(value, list) and many else [value]
    if not ids or not all(type(i) is int and 0 <= i < vocab_size for i in ids):
        raise ConfigError(
            f"{file}: {name} is {shown(value)}, expected a token id from 0 to {vocab_size - 1}"
            f"{' or a list of them' if many else ''}; correct it as the source has it"
        )
    return list(ids)


def _eos_id(tokenizer: TokenizerFile, token: str) -> int:
    if token not in tokenizer.vocabulary:
        raise TokenizerError(
            f"{tokenizer.path} has no token {shown(token)}, which tokenizer_config.json or {SPECIAL_TOKENS_MAP} calls "
            "the eos_token; use the tokenizer that the model was trained with"
        )
    return tokenizer.vocabulary[token]


def _turn_ends(
    tokenizer: TokenizerFile, special: SpecialTokens, templates: Mapping[str, str], stated: Sequence[int]
) -> list[int]:
    """What ends a turn: what the template writes there, and ChatML's token where the template or a file names it."""
    try:
        found = end_of_turn(templates, special.named, tokenizer.added)
    except SandboxError as error:
        raise TokenizerError(
            f"{tokenizer.path.parent}: the chat template fails on a question and its answer: {error}; restore it from "
            "the source, or mend it"
        ) from error
    ends = [] if found is None else [found]
    chatml = tokenizer.vocabulary.get(END_OF_TURN)
    if chatml is not None and (chatml in stated or any(END_OF_TURN in text for text in templates.values())):
        ends.append(chatml)
    return ends
