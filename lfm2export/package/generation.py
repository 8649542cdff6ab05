"""generation_config.json: the source's, with its sampling values, or the special token ids alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lfm2export.text.token_ids import TokenIds

#: Numbers that transformers refuses as whole ones.
_FLOATS = ("temperature", "top_p", "min_p", "repetition_penalty")


def artifact_generation(generation: Mapping[str, Any] | None, tokens: TokenIds) -> dict[str, Any]:
    """Sampling values as the source has them, none invented; the token ids always.

    Whoever wants greedy text passes `do_sample=False`, which every runtime puts before this file.
    """
    kept = dict(generation or {})
    kept |= {name: float(kept[name]) for name in _FLOATS if kept.get(name) is not None}
    kept["eos_token_id"] = tokens.eos[0] if len(tokens.eos) == 1 else list(tokens.eos)
    for name, value in (("bos_token_id", tokens.bos), ("pad_token_id", tokens.pad)):
        if value is not None:
            kept[name] = value
    return dict(sorted(kept.items()))
