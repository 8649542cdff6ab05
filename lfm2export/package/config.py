"""config.json of the artifact: the source's, normalized so that every reader finds the same model in it.

Readers differ. transformers takes `block_ff_dim` over `intermediate_size` and adjusts it again when
`block_auto_adjust_ff_dim` is true; others take `intermediate_size` as the width. So both hold the final width and the
adjustment is off. Transformers.js needs `layer_types` and reads "transformers.js_config"; transformers 4 reads
`rope_theta`, transformers 5 `rope_parameters`; the card's loop takes hidden_size / num_attention_heads for head_dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lfm2export.contract import MODEL_FILES, cache_dtype
from lfm2export.spec import ModelSpec
from lfm2export.text.token_ids import TokenIds

#: The dtypes that Transformers.js 4 looks for when it is told none: fp32 everywhere but on wasm, where it is q8.
TRANSFORMERS_JS_DEFAULTS = ("fp32", "q8")

#: The dtype to name instead when one of those files is missing, the first that is there.
TRANSFORMERS_JS_PREFERENCE = ("q8", "q4", "fp32", "q4f16", "fp16")

#: Spellings that a normalized key replaces, and keys that speak of the source's files.
_DROPPED = ("theta", "rope_scaling", "torch_dtype", "tie_embedding", "transformers.js_config", "_name_or_path")


def artifact_config(
    config: Mapping[str, Any], spec: ModelSpec, tokens: TokenIds, chunks: Mapping[str, int]
) -> dict[str, Any]:
    """`config` normalized, with what Transformers.js wants to know about the files.

    Args:
        config: of the source; unknown keys are kept.
        chunks: model file name (``model_q4.onnx``) -> number of external data files.

    Returns:
        A new dict in alphabetical order, "transformers.js_config" last.
    """
    kept = {name: value for name, value in config.items() if name not in _DROPPED}
    dtype = config.get("dtype", config.get("torch_dtype"))
    if dtype is not None:
        kept["dtype"] = dtype
    kept |= {
        "architectures": ["Lfm2ForCausalLM"],
        "model_type": "lfm2",
        "block_auto_adjust_ff_dim": False,
        "block_ff_dim": spec.intermediate_size,
        "intermediate_size": spec.intermediate_size,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.num_hidden_layers,
        "num_attention_heads": spec.num_attention_heads,
        "num_key_value_heads": spec.num_key_value_heads,
        "head_dim": spec.head_dim,
        "conv_L_cache": spec.conv_L_cache,
        "conv_bias": spec.conv_bias,
        "layer_types": list(spec.layer_types),
        "full_attn_idxs": list(spec.attention_layers),
        "tie_word_embeddings": spec.tie_word_embeddings,
        "norm_eps": spec.norm_eps,
        "rope_theta": spec.rope_theta,
        "rope_parameters": {"rope_theta": spec.rope_theta, "rope_type": "default"},
        "max_position_embeddings": spec.max_position_embeddings,
        "bos_token_id": tokens.bos,
        "eos_token_id": tokens.end_of_turn,
        "pad_token_id": tokens.pad,
    }
    return dict(sorted(kept.items())) | {"transformers.js_config": transformers_js_config(chunks)}


def transformers_js_config(chunks: Mapping[str, int]) -> dict[str, Any]:
    """What Transformers.js cannot find out from the files alone (4.3.2: utils/model-loader.js, utils/dtypes.js).

    use_external_data_format: chunks by full file name; it is looked up by that name first, then by "model".
    kv_cache_dtype: by dtype; version 3 reads it, version 4 asks the session.
    dtype: the default, only where one of the files that it would look for by itself is missing.
    """
    present = [dtype for dtype, name in MODEL_FILES.items() if name in chunks]
    settings: dict[str, Any] = {"use_external_data_format": {name: count for name, count in chunks.items() if count}}
    half = {dtype: "float16" for dtype in present if cache_dtype(dtype) == "float16"}
    if half:
        settings["kv_cache_dtype"] = half
    if any(dtype not in present for dtype in TRANSFORMERS_JS_DEFAULTS):
        settings["dtype"] = next(dtype for dtype in TRANSFORMERS_JS_PREFERENCE if dtype in present)
    return settings
