"""What a folder says about generating: stop tokens and sampling values, from generation_config.json and config.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfm2export.errors import ArtifactError
from lfm2export.generation.sampling import CARD, Sampling
from lfm2export.spec import read_config


@dataclass(frozen=True)
class Defaults:
    """`sampling` is what the folder asks for, or the model card's values where it asks for none."""

    eos_ids: frozenset[int]
    sampling: Sampling
    stated: bool


def read_defaults(folder: Path) -> Defaults:
    """Stop tokens and sampling of `folder`.

    Raises:
        ArtifactError: generation_config.json is no JSON object, or no file names an eos_token_id.
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
    ids = frozenset(int(token) for token in (eos if isinstance(eos, list) else [eos]))
    stated = any(generation.get(name) is not None for name in ("temperature", "min_p", "repetition_penalty"))
    if not stated:
        return Defaults(ids, CARD, False)
    sampling = Sampling(
        temperature=float(_or(generation, "temperature", 1.0)),
        min_p=generation.get("min_p"),
        repetition_penalty=float(_or(generation, "repetition_penalty", 1.0)),
        top_k=generation.get("top_k"),
        top_p=generation.get("top_p"),
    )
    return Defaults(ids, sampling, True)


def _or(values: dict[str, Any], name: str, default: float) -> Any:
    value = values.get(name)
    return default if value is None else value
