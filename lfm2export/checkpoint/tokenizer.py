"""Whether the tokenizer beside the weights fits the vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lfm2export.errors import TokenizerError
from lfm2export.untrusted.json_reader import MAX_TOKENIZER_BYTES, read_object
from lfm2export.untrusted.paths import find_file, shown


def check_tokenizer(folder: Path, vocab_size: int) -> None:
    """Check that tokenizer.json is there and that no id of it lies outside the table of `vocab_size` rows.

    Raises:
        TokenizerError: it is missing, damaged, or larger than the vocabulary.
    """
    path = find_file(folder, "tokenizer.json", TokenizerError)
    if path is None:
        others = [
            name for name in ("tokenizer.model", "vocab.json", "tokenizer_config.json") if (folder / name).exists()
        ]
        found = f" (only {', '.join(others)})" if others else ""
        raise TokenizerError(
            f"{folder} has no tokenizer.json{found}; save the tokenizer beside the weights with "
            "AutoTokenizer.from_pretrained(BASE_MODEL).save_pretrained(FOLDER)"
        )
    tokenizer = read_object(path, TokenizerError, folder=folder, limit=MAX_TOKENIZER_BYTES)
    ids = _token_ids(path, tokenizer)
    if not ids:
        raise TokenizerError(f"{path} has no model vocabulary (model.vocab); save it again with save_pretrained")
    largest = max(ids)
    if largest >= vocab_size:
        raise TokenizerError(
            f"{path} has the token {shown(ids[largest])} with id {largest}, expected ids below vocab_size "
            f"{vocab_size}; use the tokenizer that the model was trained with, or resize_token_embeddings and train on"
        )


def _token_ids(path: Path, tokenizer: dict[str, Any]) -> dict[int, str]:
    """id -> token of the vocabulary and the added tokens; empty when there is no vocabulary."""
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids: dict[int, str] = {}
    if isinstance(vocabulary, dict):
        ids = {_checked(path, index, token): token for token, index in vocabulary.items()}
    elif isinstance(vocabulary, list):  # Unigram: [token, score] in the order of ids
        for index, entry in enumerate(vocabulary):
            if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
                raise _damaged(path, f"the entry {shown(entry)} in model.vocab, expected a token and its score")
            ids[index] = entry[0]
    if not ids:
        return {}
    added = tokenizer.get("added_tokens")
    if added is not None and not isinstance(added, list):
        raise _damaged(path, f"{shown(added)} as added_tokens, expected a list")
    for entry in added or []:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise _damaged(path, f"the added token {shown(entry)}, expected an object with id and content")
        ids[_checked(path, entry.get("id"), entry["content"])] = entry["content"]
    return ids


def _checked(path: Path, index: object, token: str) -> int:
    if isinstance(index, bool) or not isinstance(index, int) or index < 0:
        raise _damaged(path, f"the token {shown(token)} with id {shown(index)}, expected a number from 0 on")
    return index


def _damaged(path: Path, what: str) -> TokenizerError:
    return TokenizerError(f"{path} has {what}; save it again with save_pretrained")
