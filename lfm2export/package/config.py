"""config.json of the artifact: the source's, normalized so that every reader finds the same model in it.

Readers differ. transformers takes `block_ff_dim` over `intermediate_size` and adjusts it again when
`block_auto_adjust_ff_dim` is true; others take `intermediate_size` as the width. So both hold the final width and the
adjustment is off. Transformers.js needs `layer_types` and reads "transformers.js_config"; transformers 4 reads
`rope_theta`, transformers 5 `rope_parameters`; the card's loop takes hidden_size / num_attention_heads for head_dim.

Beside what the spec states, only the keys in :data:`KEPT` are taken over (why not all others: `package.plain`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lfm2export.contract import MODEL_FILES, cache_dtype
from lfm2export.errors import ConfigError
from lfm2export.package.plain import Kind, boolean, integer, keep, number, one_of, version
from lfm2export.spec import ModelSpec
from lfm2export.text.token_ids import TokenIds

FILE = "config.json"

#: The dtypes that Transformers.js 4 looks for when it is told none: fp32 everywhere but on wasm, where it is q8.
TRANSFORMERS_JS_DEFAULTS = ("fp32", "q8")

#: Device of Transformers.js -> the dtype to take where the caller names none, the first that is there. On processors q8
#: is fastest and loses least but for float files; on WebGPU its products would run on the processor, and q4 runs on
#: every adapter where float16 files need shader-f16. `cpu` is Node's default device, `wasm` a browser's.
DEVICE_DTYPES: Mapping[str, tuple[str, ...]] = {
    "cpu": ("q8", "q4", "fp32", "q4f16", "fp16"),
    "wasm": ("q8", "q4", "fp32", "q4f16", "fp16"),
    "webgpu": ("q4", "q4f16", "fp16", "fp32", "q8"),
}

#: What is taken over from the source's config as it is: second spellings of the released ones, how the weights were
#: initialized, and who saved it.
KEPT: Mapping[str, Kind] = {
    "block_dim": integer,
    "block_ffn_dim_multiplier": number,
    "block_mlp_init_scale": number,
    "block_multiple_of": integer,
    "block_norm_eps": number,
    "block_out_init_scale": number,
    "block_use_swiglu": boolean,
    "block_use_xavier_init": boolean,
    "conv_dim": integer,
    "conv_dim_out": integer,
    "conv_use_xavier_init": boolean,
    "dtype": one_of("bfloat16", "float16", "float32"),
    "initializer_range": number,
    "num_heads": integer,
    "transformers_version": version,
    "use_cache": boolean,
    "use_pos_enc": boolean,
}

#: Spellings that a normalized key replaces, and what transformers writes about the folder and the head that it had.
_REPLACED = (
    "_name_or_path",
    "id2label",
    "label2id",
    "rope_scaling",
    "theta",
    "tie_embedding",
    "torch_dtype",
    "transformers.js_config",
)


def kept_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What of the source's `config` is taken over, and the names of what is left out although it says something.

    Raises:
        ConfigError: a key that is taken over has a value that no reader takes.
    """
    stated = {name: value for name, value in config.items() if name not in _NORMALIZED}
    dtype = config.get("dtype") if config.get("dtype") is not None else config.get("torch_dtype")
    if dtype is not None:
        stated["dtype"] = dtype.removeprefix("torch.") if isinstance(dtype, str) else dtype
    return keep(stated, KEPT, FILE, ConfigError, unsaid=_REPLACED, loose=("transformers_version",))


def artifact_config(
    kept: Mapping[str, Any],
    spec: ModelSpec,
    tokens: TokenIds,
    chunks: Mapping[str, int],
    int8_caches: Collection[str] = (),
) -> dict[str, Any]:
    """The artifact's config.json: `spec` under every name that a reader looks for, and what :func:`kept_config` kept.

    Args:
        chunks: model file name (``model_q4.onnx``) -> number of external data files.
        int8_caches: dtypes whose keys and values are int8.

    Returns:
        A new dict in alphabetical order, "transformers.js_config" last.
    """
    written = {**kept, **_normalized(spec, tokens)}
    return dict(sorted(written.items())) | {"transformers.js_config": transformers_js_config(chunks, int8_caches)}


def _normalized(spec: ModelSpec, tokens: TokenIds) -> dict[str, Any]:
    return {
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


#: Keys that the spec and the token ids state, whatever the source has there.
_NORMALIZED = (
    "architectures",
    "model_type",
    "block_auto_adjust_ff_dim",
    "block_ff_dim",
    "intermediate_size",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "conv_L_cache",
    "conv_bias",
    "layer_types",
    "full_attn_idxs",
    "tie_word_embeddings",
    "norm_eps",
    "rope_theta",
    "rope_parameters",
    "max_position_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def transformers_js_config(chunks: Mapping[str, int], int8_caches: Collection[str] = ()) -> dict[str, Any]:
    """What Transformers.js cannot find out from the files alone (4.3.2: models/session.js, utils/model-loader.js).

    use_external_data_format: chunks by full file name; it is looked up by that name first, then by "model".
    kv_cache_dtype: by dtype, where it is not float32; version 3 reads it, version 4 asks the session.
    device_config: the dtype of each device, in place of `dtype`, where the caller names none.
    dtype: for all other devices, and what totals of progress are counted by; only where one of the files that it would
        look for by itself is missing.
    """
    present = [dtype for dtype, name in MODEL_FILES.items() if name in chunks]
    settings: dict[str, Any] = {"use_external_data_format": {name: count for name, count in chunks.items() if count}}
    held = {dtype: "int8" if dtype in int8_caches else cache_dtype(dtype) for dtype in present}
    told = {dtype: kind for dtype, kind in held.items() if kind != "float32"}
    if told:
        settings["kv_cache_dtype"] = told
    by_device = device_dtypes(present, int8_caches)
    settings["device_config"] = {device: {"dtype": dtype} for device, dtype in by_device.items()}
    if any(dtype not in present for dtype in TRANSFORMERS_JS_DEFAULTS):
        settings["dtype"] = by_device["wasm"]
    return settings


def device_dtypes(present: Collection[str], int8_caches: Collection[str] = ()) -> dict[str, str]:
    """Device of Transformers.js -> the dtype of `present` that is taken there where the caller names none.

    WebGPU is left out where all files have int8 keys and values, for which it has no kernel.
    """
    found: dict[str, str] = {}
    for device, order in DEVICE_DTYPES.items():
        refused = int8_caches if device == "webgpu" else ()
        usable = [dtype for dtype in order if dtype in present and dtype not in refused]
        found |= {device: usable[0]} if usable else {}
    return found
