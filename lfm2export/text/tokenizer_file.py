"""tokenizer.json and the special tokens that tokenizer_config.json names: read, checked, and tried."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lfm2export.errors import TokenizerError
from lfm2export.text.sandbox import SandboxError, try_tokenizer
from lfm2export.text.templates import TOKENIZER_CONFIG
from lfm2export.text.tokenizer_growth import SAVE_AGAIN, check_growth
from lfm2export.untrusted.escape import one_line
from lfm2export.untrusted.json_reader import MAX_TOKENIZER_BYTES, kind, parse_json, read_object
from lfm2export.untrusted.paths import find_file, shown
from lfm2export.untrusted.text import read_bytes, without_mark

TOKENIZER = "tokenizer.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"

#: Special tokens that a template sees by name.
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

#: Settings of a training run that every reader of the file would apply to a user's prompt.
OF_TRAINING = ("truncation", "padding")

#: Characters of one token; a vocabulary's longest have about a hundred. An answer repeats a token as often as it likes.
MAX_TOKEN = 4096

#: Ids beyond this are none of any vocabulary (32 bits, signed).
MAX_ID = 2**31 - 1

#: Pieces of all templates of a post-processor, and tokens of one piece; those of the family have 1 to 4, of 1 each.
MAX_PIECES = 64
MAX_PIECE_TOKENS = 16

#: What a tokenizer is tried with: nothing, several scripts, numbers, code, long runs of one character.
PROBE_TEXTS = (
    "",
    "The module provides 1,234.5 functions for reading files; it's new.\n\n  def read(path):\n\treturn open(path)\n",
    "Übersetze bitte: 水 is water, вода тоже. 🙂 مرحبا नमस्ते\u00a0\u200b\r\n",
    "a" * 200 + " " * 200 + "\n" * 50 + "1" * 50 + "!" * 50,
)


@dataclass(frozen=True)
class TokenizerFile:
    """tokenizer.json: the ids of all tokens, and of the added ones alone.

    data: the file as an artifact has it: its own bytes, unless it has settings `of_training`, which would cut or fill
    every prompt of a user's.
    """

    path: Path
    vocabulary: Mapping[str, int] = field(repr=False)
    added: Mapping[str, int] = field(repr=False)
    data: bytes = field(repr=False)
    of_training: tuple[str, ...]

    @property
    def text(self) -> str:
        """`data` as a text."""
        return self.data.decode()


@dataclass(frozen=True)
class SpecialTokens:
    """named: "bos_token" and the like -> text, as templates see them. eos: every text that a file calls eos_token."""

    named: Mapping[str, str]
    eos: tuple[str, ...]


def read_tokenizer_file(folder: Path) -> TokenizerFile:
    """The tokenizer.json of `folder`.

    Raises:
        TokenizerError: it is missing, is not JSON, has no vocabulary, gives an id twice, or makes texts much longer.
    """
    path = find_file(folder, TOKENIZER, TokenizerError)
    if path is None:
        others = [name for name in ("tokenizer.model", "vocab.json", TOKENIZER_CONFIG) if (folder / name).exists()]
        found = f" (only {', '.join(others)})" if others else ""
        raise TokenizerError(
            f"{folder} has no tokenizer.json{found}; save the tokenizer beside the weights with "
            "AutoTokenizer.from_pretrained(BASE_MODEL).save_pretrained(FOLDER)"
        )
    return _parsed(path, read_bytes(path, TokenizerError, MAX_TOKENIZER_BYTES, folder=folder))


@lru_cache(maxsize=2)  # a command asks for token ids, and then for the tokenizer
def _parsed(path: Path, data: bytes) -> TokenizerFile:
    content = parse_json(data, path, TokenizerError, SAVE_AGAIN)
    if not isinstance(content, dict):
        raise TokenizerError(f"{path} holds a JSON {kind(content)}, expected an object; {SAVE_AGAIN}")
    vocabulary = _vocabulary(path, content.get("model"))
    added = _added(path, content.get("added_tokens"))
    _check_ids(path, vocabulary, added)
    _check_post_processor(path, content.get("post_processor"))
    check_growth(path, content)
    of_training = tuple(name for name in OF_TRAINING if content.get(name) is not None)
    if content["model"].get("dropout") is not None:  # of BPE: merges left out by chance
        of_training = (*of_training, "model.dropout")
        content["model"]["dropout"] = None
    if of_training:
        content |= dict.fromkeys(OF_TRAINING)
        data = (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode()
    return TokenizerFile(path, {**vocabulary, **added}, added, without_mark(data), of_training)


def check_tokenizer(file: TokenizerFile, vocab_size: int, texts: Sequence[str] = ()) -> None:
    """That no id lies outside an embedding of `vocab_size` rows, and that PROBE_TEXTS and `texts` can be encoded.

    Raises:
        TokenizerError: one does, or they cannot.
    """
    token, largest = max(file.vocabulary.items(), key=lambda item: item[1])
    if largest >= vocab_size:
        raise TokenizerError(
            f"{file.path} has the token {shown(token)} with id {largest}, expected ids below vocab_size {vocab_size}; "
            "use the tokenizer that the model was trained with, or resize_token_embeddings and train on"
        )
    for text, ids in zip((*PROBE_TEXTS, *texts), _tried(file, (*PROBE_TEXTS, *texts)), strict=True):
        if max(ids, default=0) >= vocab_size:
            raise TokenizerError(
                f"{file.path} gives {shown(text, 40)} the id {max(ids)}, expected ids below vocab_size {vocab_size}; "
                f"{SAVE_AGAIN}"
            )


def load_tokenizer(file: TokenizerFile) -> Tokenizer:
    """`file` as a tokenizer of this process, without truncation and padding, after it was tried in another one.

    Raises:
        TokenizerError: it cannot be read, or fails at encoding plain texts.
    """
    _tried(file, PROBE_TEXTS)
    try:
        tokenizer = Tokenizer.from_str(file.text)
    except BaseException as error:
        raise_unless_panic(error)
        raise _unreadable(file.path, str(error)) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def raise_unless_panic(error: BaseException) -> None:
    """Raise `error` again unless it comes from the tokenizers' library: a plain Exception, or a panic of Rust."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


def read_tokenizer_settings(folder: Path) -> dict[str, Any]:
    """The JSON object in tokenizer_config.json; empty where there is no such file.

    Raises:
        TokenizerError: it is damaged.
    """
    path = find_file(folder, TOKENIZER_CONFIG, TokenizerError)
    return read_object(path, TokenizerError, folder=folder) if path is not None else {}


def read_special_tokens(folder: Path, settings: Mapping[str, Any]) -> SpecialTokens:
    """The special tokens of `folder`, whose tokenizer_config.json is `settings`.

    As in transformers, special_tokens_map.json goes before settings that list no "added_tokens_decoder".

    Raises:
        TokenizerError: a token is neither a text nor an object with one.
    """
    named = _named(settings, folder / TOKENIZER_CONFIG)
    path = find_file(folder, SPECIAL_TOKENS_MAP, TokenizerError)
    older = _named(read_object(path, TokenizerError, folder=folder), path) if path is not None else {}
    decided = {**older, **named} if "added_tokens_decoder" in settings else {**named, **older}
    eos = dict.fromkeys(tokens["eos_token"] for tokens in (decided, named, older) if "eos_token" in tokens)
    return SpecialTokens(decided, tuple(eos))


def _named(settings: Mapping[str, Any], path: Path) -> dict[str, str]:
    named: dict[str, str] = {}
    for name in NAMED_TOKENS:
        value = settings.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            named[name] = content
        elif value is not None:
            raise TokenizerError(
                f'{path}: {name} is {shown(value)}, expected a text, or an object with its "content"; restore it from '
                "the source"
            )
    return named


def _vocabulary(path: Path, model: Any) -> dict[str, int]:
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list) and all(
        isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) for entry in vocabulary
    ):  # Unigram: [token, score] in the order of ids
        vocabulary = {entry[0]: index for index, entry in enumerate(vocabulary)}
    if not isinstance(vocabulary, dict) or not vocabulary:
        raise TokenizerError(f"{path} has no model vocabulary (model.vocab); save it again with save_pretrained")
    for token, index in vocabulary.items():
        _check_id(path, token, index)
    return vocabulary


def _added(path: Path, entries: Any) -> dict[str, int]:
    if entries is None:
        return {}
    if not isinstance(entries, list):
        raise TokenizerError(f"{path}: added_tokens is a {kind(entries)}, expected a list; {SAVE_AGAIN}")
    added: dict[str, int] = {}
    for number, entry in enumerate(entries):
        content = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(content, str):
            raise TokenizerError(
                f'{path}: entry {number} of added_tokens is {shown(entry)}, expected an object with "id" and '
                f'"content"; {SAVE_AGAIN}'
            )
        _check_id(path, content, entry.get("id"))
        if added.setdefault(content, entry["id"]) != entry["id"]:
            raise TokenizerError(f"{path}: added_tokens has {shown(content)} twice; {SAVE_AGAIN}")
    return added


def _check_id(path: Path, token: str, index: Any) -> None:
    if len(token) > MAX_TOKEN:
        raise TokenizerError(
            f"{path} has the token {shown(token)} of {len(token):,} characters, expected at most {MAX_TOKEN:,}; "
            f"{SAVE_AGAIN}"
        )
    if type(index) is not int or not 0 <= index <= MAX_ID:
        raise TokenizerError(
            f"{path}: the token {shown(token)} has the id {shown(index)}, expected a number from 0 up; {SAVE_AGAIN}"
        )


def _check_post_processor(path: Path, value: Any) -> None:
    """That what a post-processor, or one inside it, puts around every text is short."""
    if isinstance(value, list):
        for entry in value:
            _check_post_processor(path, entry)
    if not isinstance(value, dict):
        return
    _check_post_processor(path, value.get("processors"))
    special = value.get("special_tokens")
    tokens = list(special.values()) if isinstance(special, dict) else []
    parts = (value.get("single"), value.get("pair"), value.get("processors"), tokens)
    pieces = max(len(part) for part in parts if isinstance(part, list))
    lists = [token.get(name) for token in tokens if isinstance(token, dict) for name in ("ids", "tokens")]
    longest = max((len(ids) for ids in lists if isinstance(ids, list)), default=0)
    if pieces > MAX_PIECES or longest > MAX_PIECE_TOKENS:
        raise TokenizerError(
            f"{path}: its post_processor puts {pieces:,} pieces of up to {longest:,} tokens around a text, expected at "
            f"most {MAX_PIECES} of {MAX_PIECE_TOKENS}; {SAVE_AGAIN}"
        )


def _check_ids(path: Path, vocabulary: Mapping[str, int], added: Mapping[str, int]) -> None:
    """One id a token, one token an id."""
    tokens: dict[int, str] = {}
    for token, index in (*vocabulary.items(), *added.items()):
        if vocabulary.get(token, index) != index:
            raise TokenizerError(
                f"{path} has the token {shown(token)} with the ids {vocabulary[token]} and {index}; {SAVE_AGAIN}"
            )
        if tokens.setdefault(index, token) != token:
            raise TokenizerError(
                f"{path} has the tokens {shown(tokens[index])} and {shown(token)} with one id, {index}; {SAVE_AGAIN}"
            )


#: Tokenizers that were tried in this process and found good, with the ids of the texts.
_good: dict[tuple[str, tuple[str, ...]], list[list[int]]] = {}


def _tried(file: TokenizerFile, texts: Sequence[str]) -> list[list[int]]:
    """The ids of `texts`, found in another process: a tokenizer is a program, and may crash or never end."""
    key = (file.text, tuple(texts))
    if key not in _good:
        try:
            tokens = try_tokenizer(file.text, texts)
        except SandboxError as error:
            raise _unreadable(file.path, str(error)) from error
        if len(_good) == 4:
            _good.clear()
        _good[key] = tokens
    return _good[key]


def _unreadable(path: Path, reason: str) -> TokenizerError:
    return TokenizerError(f"{path} cannot be used: {one_line(reason)}; {SAVE_AGAIN}")
