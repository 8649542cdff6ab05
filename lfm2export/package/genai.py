"""genai_config.json: how onnxruntime-genai (0.18) runs the same folder, without conversion.

Its type "lfm2" wants `layer_types` of every layer and one name pattern per kind of cache, and takes the shape of the
conv states from the graph itself. Keys and values live in one buffer per layer that is bound as past and present
(`past_present_share_buffer`), allocated for `max_length` tokens at once: so that length is bounded here, or a 350M
model would ask for 3 GB at its full context. Callers raise it with `params.set_search_options(max_length=...)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from lfm2export import contract
from lfm2export.package.model_files import preferred
from lfm2export.spec import ModelSpec
from lfm2export.text.token_ids import TokenIds

#: Tokens that the cache is allocated for unless the caller says otherwise: 100 MB of float32 for a 350M model.
DEFAULT_MAX_LENGTH = 4096

#: Search values that generation_config.json and genai share. (`min_p` is unknown to genai 0.18.)
_SHARED = {"do_sample": False, "repetition_penalty": 1.0, "temperature": 1.0, "top_k": 50, "top_p": 1.0}


def _pattern(name: str) -> str:
    """The contract's name of layer 0 with `%d` where the layer number stands."""
    return re.sub(r"\.0(?=\.|$)", ".%d", name)


#: What the graph's inputs and outputs are called, one pattern per kind of cache.
INPUT_NAMES = {
    "input_ids": contract.INPUT_IDS,
    "attention_mask": contract.ATTENTION_MASK,
    "position_ids": contract.POSITION_IDS,
    "past_key_names": _pattern(contract.past_key_value(0, "key")),
    "past_value_names": _pattern(contract.past_key_value(0, "value")),
    "past_conv_names": _pattern(contract.past_conv(0)),
}
OUTPUT_NAMES = {
    "logits": contract.LOGITS,
    "present_key_names": _pattern(contract.present_key_value(0, "key")),
    "present_value_names": _pattern(contract.present_key_value(0, "value")),
    "present_conv_names": _pattern(contract.present_conv(0)),
}


def genai_config(
    spec: ModelSpec,
    tokens: TokenIds,
    generation: Mapping[str, Any],
    dtypes: Iterable[str],
    default_length: int | None = None,
) -> dict[str, Any]:
    """genai_config.json for the preferred one of `dtypes`; others are opened with `Config.overlay`.

    generation: as transformers reads it, which samples only where it says `do_sample: true`.
    default_length: tokens of a text by the tokenizer's settings, at most the positions (None: those).
    """
    length = default_length if default_length is not None else spec.max_position_embeddings
    search: dict[str, Any] = {
        name: generation[name] if generation.get(name) is not None else value for name, value in _SHARED.items()
    }
    search["do_sample"] = generation.get("do_sample") is True
    search |= {
        "diversity_penalty": 0.0,
        "early_stopping": True,
        "length_penalty": 1.0,
        "max_length": min(length, DEFAULT_MAX_LENGTH),
        "min_length": 0,
        "no_repeat_ngram_size": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        "past_present_share_buffer": True,
    }
    pad = tokens.pad if tokens.pad is not None else tokens.eos[-1]
    return {
        "model": {
            "bos_token_id": tokens.bos if tokens.bos is not None else tokens.end_of_turn,
            "context_length": spec.max_position_embeddings,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": f"onnx/{contract.MODEL_FILES[preferred(dtypes)]}",
                "head_size": spec.head_dim,
                "hidden_size": spec.hidden_size,
                "inputs": dict(INPUT_NAMES),
                "outputs": dict(OUTPUT_NAMES),
                "num_attention_heads": spec.num_attention_heads,
                "num_hidden_layers": spec.num_hidden_layers,
                "num_key_value_heads": spec.num_key_value_heads,
                "layer_types": list(spec.layer_types),
                "conv_cache_size": spec.conv_L_cache,
            },
            "eos_token_id": tokens.eos[0] if len(tokens.eos) == 1 else list(tokens.eos),
            "pad_token_id": pad,
            "type": "lfm2",
            "vocab_size": spec.vocab_size,
        },
        "search": dict(sorted(search.items())),
    }
