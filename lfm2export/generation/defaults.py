"""What a folder says about generating: stop tokens and sampling values, from generation_config.json and config.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfm2export.errors import ArtifactError
from lfm2export.generation.sampling import CARD, Sampling
from lfm2export.spec import read_config

#: Keys of generation_config.json that say how tokens are drawn.
SAMPLING = ("temperature", "min_p", "repetition_penalty", "top_k", "top_p")


@dataclass(frozen=True)
class Defaults:
    """`sampling` is what the folder asks for, or the model card's values where it asks for none."""

    eos_ids: frozenset[int]
    sampling: Sampling
    stated: bool


def read_defaults(folder: Path) -> Defaults:
    """Stop tokens and sampling of `folder`.

    Raises:
        ArtifactError: generation_config.json is no JSON object or holds no numbers, or no file names an eos_token_id.
        PromptError: a sampling value is outside its range.
    """
    generation: dict[str, Any] = {}
    path = folder / "generation_config.json"
    if path.is_file():
        try:
            generation = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ArtifactError(f"{path} is not valid JSON ({error}); restore it or remove it") from error
        if not isinstance(generation, dict):
            raise ArtifactError(f"{path} holds a JSON {type(generation).__name__}, expected an object; remove it")
    eos = generation.get("eos_token_id")
    if eos is None:
        eos = read_config(folder).get("eos_token_id")
    if eos is None:
        raise ArtifactError(f"{folder}: config.json names no eos_token_id; add it as the checkpoint's source has it")
    ids = frozenset(_token(folder, token) for token in (eos if isinstance(eos, list) else [eos]))
    if not any(generation.get(name) is not None for name in (*SAMPLING, "do_sample")):
        return Defaults(ids, CARD, False)
    values = {name: _number(path, name, generation[name]) for name in SAMPLING if generation.get(name) is not None}
    penalty = values.get("repetition_penalty", 1.0)
    if generation.get("do_sample") is False:
        return Defaults(ids, Sampling(repetition_penalty=penalty), True)
    sampling = Sampling(
        temperature=values.get("temperature", 1.0),
        min_p=values.get("min_p"),
        repetition_penalty=penalty,
        top_k=int(values["top_k"]) if "top_k" in values else None,
        top_p=values.get("top_p"),
    )
    return Defaults(ids, sampling, True)


def _number(path: Path, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ArtifactError(f"{path}: {name} is {value!r}, expected a number; correct it or remove it")
    return float(value)


def _token(folder: Path, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ArtifactError(f"{folder}: eos_token_id holds {value!r}, expected token numbers; correct it")
    return value
