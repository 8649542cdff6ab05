"""config.json -> ModelSpec: transformers' and the hub's spellings, and one message per refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfm2export.errors import ConfigError, SourceError
from lfm2export.spec import parse_spec, read_config
from lfm2export.synth import FAMILY, family_config
from tiny import tiny_config

#: The model card's parameter counts.
PARAMETERS = {"350M": 354_483_968, "700M": 742_489_344, "1.2B": 1_170_340_608, "2.6B": 2_569_272_320}


@pytest.mark.parametrize("size", FAMILY)
def test_released_shapes_have_the_parameters_of_the_card(size: str) -> None:
    assert parse_spec(family_config(size)).num_parameters == PARAMETERS[size]


def state_dict_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """What transformers makes of `config`, without a weight."""
    import torch
    from transformers import AutoConfig, Lfm2ForCausalLM

    with torch.device("meta"):
        model = Lfm2ForCausalLM(AutoConfig.for_model(**config))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    return shapes


@pytest.mark.parametrize(
    "config",
    [
        tiny_config(),
        tiny_config(tie_word_embeddings=False, conv_bias=True, conv_L_cache=4),
        tiny_config(head_dim=32, num_key_value_heads=1),
        tiny_config(block_auto_adjust_ff_dim=True, intermediate_size=300, block_multiple_of=64),
        tiny_config(
            intermediate_size=None,
            block_auto_adjust_ff_dim=True,
            block_ff_dim=300,
            block_multiple_of=32,
            block_ffn_dim_multiplier=1.3,
        ),
        tiny_config(block_auto_adjust_ff_dim=True, intermediate_size=301),
        tiny_config(layer_types=None, full_attn_idxs=[1, 2], num_hidden_layers=5),
        tiny_config(tie_word_embeddings=None, tie_embedding=False),
        family_config("350M"),
        family_config("2.6B"),
    ],
)
def test_tensor_shapes_are_those_of_transformers(config: dict[str, Any]) -> None:
    assert parse_spec(config).source_tensors() == state_dict_shapes(config)


def test_what_transformers_saves_gives_the_same_spec(tmp_path: Path) -> None:
    from transformers import AutoConfig

    config = family_config("1.2B")
    AutoConfig.for_model(**config).save_pretrained(tmp_path)
    assert parse_spec(read_config(tmp_path)) == parse_spec(config)


def test_layers_by_kind() -> None:
    spec = parse_spec(tiny_config(layer_types=None, full_attn_idxs=[2, 0], num_hidden_layers=4))
    assert spec.attention_layers == (0, 2)
    assert spec.conv_layers == (1, 3)


def test_aliases_stand_in_for_the_names_of_transformers() -> None:
    plain = tiny_config(intermediate_size=None, block_ff_dim=128)
    renamed = dict(plain)
    for name, alias in {
        "hidden_size": "block_dim",
        "num_attention_heads": "num_heads",
        "norm_eps": "block_norm_eps",
        "rope_theta": "theta",
        "tie_word_embeddings": "tie_embedding",
    }.items():
        renamed[alias] = renamed.pop(name)
    assert parse_spec(renamed) == parse_spec(plain)


@pytest.mark.parametrize(
    "overrides",
    [
        {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}},
        {"rope_scaling": None},
        {"quantization_config": None},
        {"block_ff_dim": 128},
        {"full_attn_idxs": [3, 1, 1]},
        {"head_dim": 16},
        {"block_use_swiglu": True, "use_pos_enc": True},
        {"architectures": None},
        {"architectures": []},
        {"is_causal": True},
        {"is_causal": None},
    ],
)
def test_harmless_spellings(overrides: dict[str, Any]) -> None:
    config = tiny_config()
    config |= overrides
    assert parse_spec(config) == parse_spec(tiny_config())


def test_intermediate_size_may_be_stated_before_or_after_the_adjustment() -> None:
    hub = family_config("350M")
    assert (
        parse_spec(hub | {"intermediate_size": 4608})
        == parse_spec(hub | {"intermediate_size": 6656})
        == parse_spec(hub)
    )


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"model_type": "llama"}, ["model_type is 'llama'", "expected 'lfm2'"]),
        ({"model_type": None}, ["model_type is None"]),
        ({"model_type": "lfm2_moe"}, ["'lfm2_moe'"]),
        ({"hidden_size": None}, ["no hidden_size"]),
        ({"vocab_size": None}, ["no vocab_size"]),
        ({"vocab_size": 0}, ["vocab_size is 0", "positive integer"]),
        ({"vocab_size": True}, ["vocab_size is True"]),
        ({"intermediate_size": 10**400}, ["intermediate_size is 1000", "at most 1,048,576"]),
        ({"norm_eps": 10**400}, ["norm_eps is 1000", "number from 1e-30 to 0.1"]),
        ({"norm_eps": 1e300}, ["norm_eps is 1e+300"]),
        ({"norm_eps": 1}, ["norm_eps is 1,"]),
        ({"norm_eps": 5e-324}, ["norm_eps is 5e-324"]),
        ({"norm_eps": "1e-5"}, ["norm_eps is '1e-5'"]),
        ({"norm_eps": True}, ["norm_eps is True"]),
        ({"hidden_size": "64"}, ["hidden_size is '64'"]),
        ({"hidden_size": 66}, ["66", "num_attention_heads 4", "head_dim"]),
        ({"num_key_value_heads": 3}, ["num_attention_heads is 4", "multiple of num_key_value_heads 3"]),
        ({"head_dim": 12}, ["head_dim is 12", "multiple of 8"]),
        ({"block_dim": 128}, ["contradicts itself", "hidden_size is 64", "block_dim is 128"]),
        ({"conv_dim": 96}, ["hidden_size is 64", "conv_dim is 96"]),
        ({"hidden_size": None, "block_dim": 64, "conv_dim": 96}, ["block_dim is 64", "conv_dim is 96"]),
        ({"num_heads": 8}, ["num_attention_heads is 4", "num_heads is 8"]),
        ({"block_norm_eps": 1e-6}, ["norm_eps is 1e-05", "block_norm_eps is 1e-06"]),
        ({"tie_embedding": False}, ["tie_word_embeddings is True", "tie_embedding is False"]),
        ({"theta": 10000.0}, ["rope_theta is 1000000.0", "theta is 10000.0"]),
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings is 'yes'", "true or false"]),
        ({"conv_bias": 1}, ["conv_bias is 1", "true or false"]),
        ({"norm_eps": -1.0}, ["norm_eps is -1.0", "number from"]),
        ({"norm_eps": float("inf")}, ["norm_eps is inf"]),
        ({"norm_eps": float("nan")}, ["norm_eps is nan"]),
        ({"rope_theta": None}, ["no rope_theta"]),
        ({"rope_theta": float("inf")}, ["rope_theta is inf", "number from 1 to 1e+15"]),
        ({"rope_theta": 5e-324}, ["rope_theta is 5e-324"]),
        ({"rope_theta": 0.5}, ["rope_theta is 0.5"]),
        ({"rope_parameters": {"rope_theta": 1e300}, "rope_theta": None}, ["rope_theta is 1e+300"]),
        ({"num_hidden_layers": 2_000_000_000, "layer_types": None, "full_attn_idxs": [0]}, ["at most 1,024"]),
        ({"num_hidden_layers": 2_000_000_000}, ["num_hidden_layers is 2000000000", "at most 1,024"]),
        ({"full_attn_idxs": [1, 3] * 1000}, ["full_attn_idxs has 2,000 entries", "at most 1,024"]),
        ({"layer_types": ["conv"] * 100_000}, ["num_hidden_layers is 100000", "at most 1,024"]),
        ({"layer_types": ["conv"] * 100_000, "num_hidden_layers": 4}, ["layer_types has 100000 entries"]),
        ({"layer_types": [{"a": "b" * 1000}]}, ["layer_types holds {'a': 'bbb", "'conv' or 'full_attention'"]),
        ({"vocab_size": 2**31 - 1}, ["vocab_size is 2147483647", "at most 4,194,304"]),
        ({"hidden_size": 1 << 30}, ["hidden_size is 1073741824"]),
        ({"hidden_size": 64.0}, ["hidden_size is 64.0"]),
        ({"head_dim": 1 << 20}, ["head_dim is 1048576"]),
        ({"conv_L_cache": 10**6}, ["conv_L_cache is 1000000", "at most 256"]),
        ({"max_position_embeddings": 10**12}, ["max_position_embeddings is 1000000000000"]),
        ({"num_attention_heads": 0}, ["num_attention_heads is 0", "positive integer"]),
        ({"num_attention_heads": -4}, ["num_attention_heads is -4"]),
        ({"num_key_value_heads": True}, ["num_key_value_heads is True"]),
        ({"block_auto_adjust_ff_dim": True, "block_ffn_dim_multiplier": 1e308}, ["multiplier is 1e+308"]),
        ({"block_auto_adjust_ff_dim": True, "block_multiple_of": 10**9}, ["block_multiple_of is 1000000000"]),
        ({"block_auto_adjust_ff_dim": True, "block_ffn_dim_multiplier": 1000.0, "intermediate_size": 1 << 20}, ["FFN"]),
        ({"block_auto_adjust_ff_dim": True, "intermediate_size": 1}, ["FFN width 1 becomes 0"]),
        ({"architectures": ["Lfm2BidirectionalModel"], "is_causal": False}, ["architectures is ['Lfm2Bidirectional"]),
        ({"architectures": ["Lfm2ForSequenceClassification"]}, ["expected ['Lfm2ForCausalLM']", "writes text"]),
        ({"architectures": ["Lfm2Model"]}, ["architectures is ['Lfm2Model']", "saved without its head"]),
        ({"architectures": "Lfm2ForCausalLM"}, ["architectures is 'Lfm2ForCausalLM', expected ['Lfm2ForCausalLM']"]),
        ({"architectures": {"a": "\n"}}, ["architectures is {'a': '\\n'}"]),
        ({"architectures": 7}, ["architectures is 7"]),
        ({"architectures": ["Lfm2ForCausalLM", "Other"]}, ["architectures is ['Lfm2ForCausalLM', 'Other']"]),
        ({"is_causal": False}, ["is_causal is False", "expected true"]),
        ({"is_causal": "no"}, ["is_causal is 'no'"]),
        ({"rope_parameters": {"rope_type": "yarn"}}, ["rope_type 'yarn'", "not proven"]),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, ["rope_scaling", "'linear'"]),
        (
            {"rope_parameters": {"rope_theta": 1e4}},
            ["rope_theta is 1000000.0", "rope_parameters.rope_theta is 10000.0"],
        ),
        ({"rope_parameters": 7}, ["rope_parameters is 7", "object"]),
        ({"num_hidden_layers": 5}, ["num_hidden_layers is 5", "4 entries"]),
        ({"num_hidden_layers": 4, "layer_types": None}, ["neither layer_types nor full_attn_idxs"]),
        ({"layer_types": ["conv", "mamba"]}, ["'mamba'", "'conv' or 'full_attention'"]),
        ({"layer_types": "conv", "num_hidden_layers": 4}, ["layer_types is 'conv'", "list"]),
        ({"full_attn_idxs": [0]}, ["full_attn_idxs is [0]", "[1, 3]"]),
        ({"full_attn_idxs": 2}, ["full_attn_idxs is 2", "list"]),
        ({"full_attn_idxs": [1, 4]}, ["full_attn_idxs holds 4", "0 to 3"]),
        ({"block_ff_dim": 192}, ["intermediate_size is 128", "block_ff_dim 192"]),
        ({"block_auto_adjust_ff_dim": True, "block_ffn_dim_multiplier": "x"}, ["block_ffn_dim_multiplier is 'x'"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config", "unquantized"]),
        ({"block_use_swiglu": False}, ["block_use_swiglu is False", "not"]),
        ({"use_pos_enc": False}, ["use_pos_enc is False"]),
    ],
)
def test_refusals_name_the_field(overrides: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_spec(tiny_config(**overrides))
    message = str(caught.value)
    assert "\n" not in message
    assert [part for part in parts if part not in message] == [], message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**4) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["rope_type", "rope_theta"]), inner),
    max_leaves=4,
)


@settings(max_examples=100, deadline=None)
@given(field=st.sampled_from([*family_config("350M"), *tiny_config(), "head_dim", "rope_parameters"]), value=JSON)
def test_any_value_of_any_field_gives_a_spec_or_a_config_error(field: str, value: Any) -> None:
    for config in (family_config("350M"), tiny_config()):
        try:
            spec = parse_spec(config | {field: value})
        except ConfigError as error:
            assert "\n" not in str(error).replace(repr(value), "")
        else:
            assert spec.num_parameters > 0


def test_read_config_refusals(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nowhere is not a folder; give the folder of a checkpoint"):
        read_config(tmp_path / "nowhere")
    with pytest.raises(SourceError, match=r"no config\.json"):
        read_config(tmp_path)
    path = tmp_path / "config.json"
    for content, said in (
        (b'{"model_type": ', "is not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff\xfe{}", "is not UTF-8 (UTF-16)"),
        (b'["lfm2"]', "holds a JSON list, expected an object"),
        (b'{"norm_eps": 1e999}', "the number 1e999 is too large"),
        (b'{"norm_eps": NaN}', "NaN is no JSON number"),
        (b'{"vocab_size": 1, "vocab_size": 2}', "an object has the key 'vocab_size' twice"),
    ):
        path.write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            read_config(tmp_path)
        message = str(caught.value)
        assert said in message and message.endswith("restore it from the checkpoint's source") and "\n" not in message


def test_read_config_drops_a_byte_order_mark_and_follows_links_inside_only(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "real.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(tiny_config()).encode())
    (folder / "config.json").symlink_to("real.json")
    assert read_config(folder) == tiny_config()
    (folder / "real.json").rename(tmp_path / "outside.json")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(SourceError, match=r"is a link to .* outside"):
        read_config(folder)


def test_a_name_too_long_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is not a folder"):
        read_config(tmp_path / ("x" * 300))
