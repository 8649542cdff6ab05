"""config.json, generation_config.json and genai_config.json: one model, whoever reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lfm2export.package.config import artifact_config, kept_config, transformers_js_config
from lfm2export.package.genai import genai_config
from lfm2export.package.generation import artifact_generation
from lfm2export.package.generation_keys import kept_generation
from lfm2export.spec import parse_spec
from lfm2export.synth import family_config
from lfm2export.text.token_ids import TokenIds
from tiny import tiny_config

TOKENS = TokenIds(bos=1, pad=0, eos=(7,))
CHUNKS = {"model.onnx": 2, "model_q4.onnx": 1}

HUB_STYLE = {
    "block_auto_adjust_ff_dim": True,
    "block_ff_dim": 384,
    "block_multiple_of": 64,
    "block_ffn_dim_multiplier": 1.1,
    "intermediate_size": None,
    "full_attn_idxs": [1, 3],
    "num_hidden_layers": 4,
    "layer_types": None,
    "tie_embedding": True,
    "tie_word_embeddings": None,
    "theta": 10000.0,
    "rope_theta": None,
}
VARIANTS: list[dict[str, Any]] = [
    {},
    HUB_STYLE,
    {"block_auto_adjust_ff_dim": True, "intermediate_size": 384},
    {"block_auto_adjust_ff_dim": True, "block_ff_dim": 384, "intermediate_size": 256},
    {"head_dim": 32},
    {"tie_word_embeddings": False, "conv_bias": True, "conv_L_cache": 5},
    {"rope_theta": None, "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"}},
]


@pytest.mark.parametrize("overrides", VARIANTS)
def test_both_readings_of_the_config_give_the_same_model(tmp_path: Path, overrides: dict[str, Any]) -> None:
    """The sizes of transformers' own model, made from the artifact's config, are those of the source."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = tiny_config(**overrides)
    spec = parse_spec(config)
    written = artifact_config(kept_config(config)[0], spec, TOKENS, CHUNKS)
    assert parse_spec(written) == spec
    assert written["intermediate_size"] == written["block_ff_dim"] == spec.intermediate_size
    (tmp_path / "config.json").write_text(json.dumps(written))
    read = AutoConfig.from_pretrained(tmp_path)
    assert (read.layer_types, read.eos_token_id) == (list(spec.layer_types), 7)
    assert read.rope_parameters["rope_theta"] == spec.rope_theta
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(read)
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if spec.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    assert state == spec.source_tensors()


@pytest.mark.parametrize("size", ["350M", "2.6B"])
def test_the_released_configs_keep_their_keys_but_second_spellings(size: str) -> None:
    config = family_config(size)
    written = artifact_config(kept_config(config)[0], parse_spec(config), TOKENS, CHUNKS)
    assert set(config) - set(written) == {"torch_dtype", "theta", "tie_embedding"}
    assert (written["dtype"], written["rope_theta"], written["tie_word_embeddings"]) == ("bfloat16", 1e6, True)
    assert parse_spec(written) == parse_spec(config)
    assert config == family_config(size), "the argument was changed"


def test_transformers_js_finds_chunks_by_file_name() -> None:
    settings = transformers_js_config(
        {"model.onnx": 3, "model_fp16.onnx": 2, "model_quantized.onnx": 1, "model_q4f16.onnx": 1}
    )
    assert settings == {
        "use_external_data_format": {
            "model.onnx": 3,
            "model_fp16.onnx": 2,
            "model_quantized.onnx": 1,
            "model_q4f16.onnx": 1,
        },
        "kv_cache_dtype": {"fp16": "float16", "q4f16": "float16"},
        "device_config": {"cpu": {"dtype": "q8"}, "wasm": {"dtype": "q8"}, "webgpu": {"dtype": "q4f16"}},
    }


def test_transformers_js_is_told_of_int8_caches() -> None:
    chunks = {"model_quantized.onnx": 1, "model_q4.onnx": 1, "model_q4f16.onnx": 1}
    told = transformers_js_config(chunks, ("q4",))
    assert told["kv_cache_dtype"] == {"q4": "int8", "q4f16": "float16"}
    assert told["device_config"]["webgpu"] == {"dtype": "q4f16"}, "WebGPU has no kernel for them"
    assert told["device_config"]["wasm"] == {"dtype": "q8"}
    alone = transformers_js_config({"model_q4.onnx": 1}, ("q4",))
    assert alone["device_config"] == {"cpu": {"dtype": "q4"}, "wasm": {"dtype": "q4"}}


@pytest.mark.parametrize(
    ("files", "dtype", "wasm", "webgpu"),
    [
        (["model.onnx", "model_quantized.onnx"], None, "q8", "fp32"),
        (["model.onnx", "model_quantized.onnx", "model_q4.onnx", "model_q4f16.onnx"], None, "q8", "q4"),
        (["model_q4.onnx"], "q4", "q4", "q4"),
        (["model.onnx", "model_q4.onnx"], "q4", "q4", "q4"),
        (["model_quantized.onnx", "model_q4.onnx"], "q8", "q8", "q4"),
        (["model_quantized.onnx"], "q8", "q8", "q8"),
        (["model_fp16.onnx"], "fp16", "fp16", "fp16"),
    ],
)
def test_transformers_js_is_told_a_dtype_for_each_device(
    files: list[str], dtype: str | None, wasm: str, webgpu: str
) -> None:
    """Beside it, one for all other devices, where what the library would look for is missing."""
    settings = transformers_js_config(dict.fromkeys(files, 1))
    assert settings.get("dtype") == dtype
    assert settings["device_config"] == {
        "cpu": {"dtype": wasm},
        "wasm": {"dtype": wasm},
        "webgpu": {"dtype": webgpu},
    }


def test_generation_config_keeps_sampling_and_invents_none() -> None:
    source = {"do_sample": True, "temperature": 0.3, "min_p": 0.15, "repetition_penalty": 1.05, "eos_token_id": 7}
    assert artifact_generation(source, TOKENS) == source | {"bos_token_id": 1, "pad_token_id": 0}
    assert artifact_generation(None, TOKENS) == {"bos_token_id": 1, "eos_token_id": 7, "pad_token_id": 0}
    assert artifact_generation(None, TokenIds(None, None, (7, 2))) == {"eos_token_id": [7, 2]}
    numbers = artifact_generation({"temperature": 1, "repetition_penalty": 2, "top_k": 5}, TOKENS)
    assert [type(numbers[name]) for name in ("temperature", "repetition_penalty", "top_k")] == [float, float, int]


def test_genai_config() -> None:
    spec = parse_spec(family_config("350M"))
    found = genai_config(spec, TOKENS, {"temperature": 0.3, "min_p": 0.15}, ["fp32", "q4"])
    model, decoder = found["model"], found["model"]["decoder"]
    assert (model["type"], model["eos_token_id"], model["context_length"]) == ("lfm2", 7, 128000)
    assert decoder["filename"] == "onnx/model_q4.onnx"
    assert decoder["inputs"]["past_conv_names"] == "past_conv.%d"
    assert decoder["inputs"]["past_key_names"] == "past_key_values.%d.key"
    assert decoder["outputs"]["present_value_names"] == "present.%d.value"
    assert decoder["outputs"]["present_conv_names"] == "present_conv.%d"
    assert decoder["layer_types"] == list(spec.layer_types) and decoder["head_size"] == 64
    assert found["search"]["past_present_share_buffer"] and found["search"]["max_length"] == 4096
    assert found["search"]["temperature"] == 0.3 and not found["search"]["do_sample"]
    assert genai_config(spec, TOKENS, {}, ["fp16", "fp32"])["model"]["decoder"]["filename"] == "onnx/model.onnx"


@pytest.mark.parametrize("said", ["/home/me/secret\n\x1b[31m", "4.57.1" * 10, "latest", 5])
def test_a_version_that_is_none_is_left_out(said: Any) -> None:
    kept, dropped = kept_config({"transformers_version": said})
    assert kept == {} and dropped == ("config.json: transformers_version",)
    kept, dropped = kept_generation({"transformers_version": said}, 512, 128)
    assert kept == {} and dropped == ("generation_config.json: transformers_version",)


def test_versions_of_libraries_are_kept() -> None:
    for version in ("4.57.1", "5.0.0.dev0", "4.55.0+cu124"):
        assert kept_config({"transformers_version": version}) == ({"transformers_version": version}, ())
