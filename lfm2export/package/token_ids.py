"""Which tokens begin, end and pad a text: read from the source's three files, which do not always agree."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfm2export.errors import ConfigError, TokenizerError

#: The token that ends a turn in LFM2's ChatML.
END_OF_TURN = "<|im_end|>"


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
    folder: Path, config: Mapping[str, Any], generation: Mapping[str, Any] | None, chat_template: str | None
) -> TokenIds:
    """The special token ids of the source in `folder`.

    generation_config.json goes before config.json, as in transformers' generate. A model whose chat template ends turns
    with <|im_end|> stops there, whatever else its configs name (fresh configs of transformers name <|endoftext|>).

    Raises:
        ConfigError: no file says where a text ends, or an id is no number.
        TokenizerError: tokenizer.json is no JSON.
    """
    vocabulary = _added_tokens(folder)
    named = _named_tokens(folder)
    sources = [generation or {}, config]

    def first(name: str) -> Any:
        return next((source[name] for source in sources if source.get(name) is not None), None)

    def single(kind: str) -> int | None:
        value = first(f"{kind}_token_id")
        if value is None:
            return vocabulary.get(named.get(f"{kind}_token", ""))
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"config.json: {kind}_token_id is {value!r}, expected a token id")
        return value

    stated = first("eos_token_id")
    stops = list(stated) if isinstance(stated, list) else [] if stated is None else [stated]
    if any(isinstance(token, bool) or not isinstance(token, int) for token in stops):
        raise ConfigError(f"config.json: eos_token_id is {stated!r}, expected a token id or a list of them")
    if not stops and named.get("eos_token") in vocabulary:
        stops = [vocabulary[named["eos_token"]]]
    turn = vocabulary.get(END_OF_TURN)
    if turn is not None and (turn in stops or (chat_template is not None and END_OF_TURN in chat_template)):
        stops = [turn, *(token for token in stops if token != turn)]
    if not stops:
        raise ConfigError(f"{folder}: no file names an eos_token_id; add it to config.json as the source has it")
    return TokenIds(bos=single("bos"), pad=single("pad"), eos=tuple(stops))


def _added_tokens(folder: Path) -> dict[str, int]:
    """Token -> id for the added (special) tokens of tokenizer.json."""
    path = folder / "tokenizer.json"
    try:
        tokenizer = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path} cannot be read ({error}); copy or download it again") from error
    entries = tokenizer.get("added_tokens") if isinstance(tokenizer, dict) else None
    return {str(entry["content"]): int(entry["id"]) for entry in entries or []}


def _named_tokens(folder: Path) -> dict[str, str]:
    """eos_token and the like of tokenizer_config.json, as plain strings."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path} is not valid JSON ({error}); copy or download it again") from error
    named: dict[str, str] = {}
    for name in ("bos_token", "eos_token", "pad_token"):
        value = settings.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            named[name] = content
    return named
