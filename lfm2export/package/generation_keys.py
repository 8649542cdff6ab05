"""Which keys of generation_config.json an artifact keeps: those of transformers' generate that hold plain values.

Left out are the ones that name code or another model (`custom_generate`, `assistant_...`), and those about how
PyTorch computes (`cache_implementation`, `compile_config`), which no reader of an ONNX file has a use for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lfm2export.errors import ConfigError
from lfm2export.package.plain import Kind, between, boolean, either, keep, list_of, one_of, text, version

FILE = "generation_config.json"

#: Beams and answers at a time, and characters or tokens of n-grams: more than any machine could serve.
MAX_COUNT = 1024
#: Tokens of a text, signed 32 bits: what runtimes count in.
MAX_TOKENS = 2**31 - 1

_COUNT = between(1, MAX_COUNT, whole=True)
_NGRAM = between(0, MAX_COUNT, whole=True)
_LENGTH = between(1, MAX_TOKENS, whole=True)
_SHARE = between(0, 1)
_FACTOR = between(-1e6, 1e6)
_POSITIVE = between(1e-6, 1e6)

_PLAIN: Mapping[str, Kind] = {
    "_from_model_config": boolean,
    "diversity_penalty": _FACTOR,
    "do_sample": boolean,
    "early_stopping": either(boolean, one_of("never")),
    "encoder_no_repeat_ngram_size": _NGRAM,
    "encoder_repetition_penalty": _POSITIVE,
    "epsilon_cutoff": _SHARE,
    "eta_cutoff": _SHARE,
    "guidance_scale": _FACTOR,
    "length_penalty": _FACTOR,
    "max_length": _LENGTH,
    "max_new_tokens": _LENGTH,
    "max_time": between(1e-3, 1e9),
    "min_p": _SHARE,
    "no_repeat_ngram_size": _NGRAM,
    "num_beam_groups": _COUNT,
    "num_beams": _COUNT,
    "num_return_sequences": _COUNT,
    "output_attentions": boolean,
    "output_hidden_states": boolean,
    "output_logits": boolean,
    "output_scores": boolean,
    "penalty_alpha": _SHARE,
    "remove_invalid_values": boolean,
    "renormalize_logits": boolean,
    "repetition_penalty": _FACTOR,
    "return_dict_in_generate": boolean,
    "stop_strings": either(text, list_of(text)),
    "temperature": _FACTOR,
    "token_healing": boolean,
    "top_h": _SHARE,
    "top_k": between(-1, MAX_TOKENS),
    "top_p": _SHARE,
    "transformers_version": version,
    "typical_p": between(1e-6, 1),
    "use_cache": boolean,
}


def _of_model(vocab_size: int, positions: int) -> dict[str, Kind]:
    """The keys whose values are ids, and those that no text of the model's could fulfil."""
    shortest = between(0, positions, whole=True)
    token = between(0, vocab_size - 1, whole=True)
    one_or_more = either(token, list_of(token))
    return {
        "bad_words_ids": list_of(list_of(token)),
        "begin_suppress_tokens": list_of(token),
        "bos_token_id": token,
        "decoder_start_token_id": one_or_more,
        "eos_token_id": one_or_more,
        "forced_bos_token_id": token,
        "forced_eos_token_id": one_or_more,
        "min_length": shortest,
        "min_new_tokens": shortest,
        "pad_token_id": token,
        "suppress_tokens": list_of(token),
    }


def kept_generation(
    generation: Mapping[str, Any], vocab_size: int, positions: int
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What of the source's generation_config.json is taken over, and the names of what is left out.

    vocab_size, positions: of the model.

    Raises:
        ConfigError: a key that is taken over has a value that no reader takes.
    """
    return keep(
        generation, {**_PLAIN, **_of_model(vocab_size, positions)}, FILE, ConfigError, loose=("transformers_version",)
    )
