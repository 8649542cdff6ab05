"""Which keys of generation_config.json an artifact keeps: those of transformers' generate that hold plain values.

Left out are the ones that name code or another model (`custom_generate`, `assistant_...`), and those about how
PyTorch computes (`cache_implementation`, `compile_config`), which no reader of an ONNX file has a use for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lfm2export.errors import ConfigError
from lfm2export.package.plain import Kind, boolean, either, integer, keep, list_of, number, one_of, text

FILE = "generation_config.json"

_TOKENS = either(integer, list_of(integer))

KEPT: Mapping[str, Kind] = {
    "_from_model_config": boolean,
    "bad_words_ids": list_of(list_of(integer)),
    "begin_suppress_tokens": list_of(integer),
    "bos_token_id": integer,
    "decoder_start_token_id": _TOKENS,
    "diversity_penalty": number,
    "do_sample": boolean,
    "early_stopping": either(boolean, one_of("never")),
    "encoder_no_repeat_ngram_size": integer,
    "encoder_repetition_penalty": number,
    "eos_token_id": _TOKENS,
    "epsilon_cutoff": number,
    "eta_cutoff": number,
    "forced_bos_token_id": integer,
    "forced_eos_token_id": _TOKENS,
    "guidance_scale": number,
    "length_penalty": number,
    "max_length": integer,
    "max_new_tokens": integer,
    "max_time": number,
    "min_length": integer,
    "min_new_tokens": integer,
    "min_p": number,
    "no_repeat_ngram_size": integer,
    "num_beam_groups": integer,
    "num_beams": integer,
    "num_return_sequences": integer,
    "output_attentions": boolean,
    "output_hidden_states": boolean,
    "output_logits": boolean,
    "output_scores": boolean,
    "pad_token_id": integer,
    "penalty_alpha": number,
    "remove_invalid_values": boolean,
    "renormalize_logits": boolean,
    "repetition_penalty": number,
    "return_dict_in_generate": boolean,
    "stop_strings": either(text, list_of(text)),
    "suppress_tokens": list_of(integer),
    "temperature": number,
    "token_healing": boolean,
    "top_h": number,
    "top_k": number,
    "top_p": number,
    "transformers_version": text,
    "typical_p": number,
    "use_cache": boolean,
}


def kept_generation(generation: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What of the source's generation_config.json is taken over, and the names of what is left out.

    Raises:
        ConfigError: a key that is taken over has a value that no reader takes.
    """
    return keep(generation, KEPT, FILE, ConfigError)
