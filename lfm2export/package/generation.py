"""generation_config.json: the source's, with its sampling values, or the special token ids alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lfm2export.errors import ConfigError
from lfm2export.package.token_ids import TokenIds

FILE = "generation_config.json"


def read_generation(folder: Path) -> dict[str, Any] | None:
    """The source's generation_config.json, or None.

    Raises:
        ConfigError: it is no JSON object.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        generation = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not valid JSON ({error}); restore it, or remove it") from error
    if not isinstance(generation, dict):
        raise ConfigError(
            f"{path} holds a JSON {type(generation).__name__}, expected an object; restore it, or remove it"
        )
    return generation


def artifact_generation(generation: Mapping[str, Any] | None, tokens: TokenIds) -> dict[str, Any]:
    """Sampling values as the source has them, none invented; the token ids always.

    Whoever wants greedy text passes `do_sample=False`, which every runtime puts before this file.
    """
    kept = dict(generation or {})
    kept["eos_token_id"] = tokens.eos[0] if len(tokens.eos) == 1 else list(tokens.eos)
    for name, value in (("bos_token_id", tokens.bos), ("pad_token_id", tokens.pad)):
        if value is not None:
            kept[name] = value
    return dict(sorted(kept.items()))
