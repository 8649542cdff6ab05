"""The architecture of one LFM2 checkpoint as a frozen record, read from config.json.

Source of the field meanings: transformers `Lfm2Config` and `Lfm2MLP` (the adjusted FFN width), and the key set of the
released checkpoints, which spells some of them twice (`block_dim`, `block_ff_dim`, `tie_embedding`, `num_heads`,
`full_attn_idxs`). No field is guessed: one that is missing or contradicts its twin is a :class:`ConfigError` naming it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from lfm2export.config_fields import (
    ALIASES,
    ALWAYS_ON,
    EPSILONS,
    MAX_LAYERS,
    MAX_SIZES,
    MULTIPLIERS,
    THETAS,
    boolean,
    check_equal,
    integer,
    number,
)
from lfm2export.errors import ConfigError, SourceError
from lfm2export.untrusted.json_reader import read_object
from lfm2export.untrusted.paths import find_file, shown

LayerType = Literal["conv", "full_attention"]

CONV: LayerType = "conv"
FULL_ATTENTION: LayerType = "full_attention"

#: The class that this tool exports, as transformers names it in `architectures`.
ARCHITECTURE = "Lfm2ForCausalLM"


@dataclass(frozen=True)
class ModelSpec:
    """Every number that shapes the graph. Letters as in the shape comments of this package.

    V vocab_size, H hidden_size, F intermediate_size (after the adjustment), N num_attention_heads,
    K num_key_value_heads, D head_dim, L conv_L_cache.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    conv_L_cache: int
    conv_bias: bool
    layer_types: tuple[LayerType, ...]
    tie_word_embeddings: bool
    norm_eps: float
    rope_theta: float
    max_position_embeddings: int

    @property
    def num_hidden_layers(self) -> int:
        return len(self.layer_types)

    @property
    def conv_layers(self) -> tuple[int, ...]:
        return tuple(i for i, kind in enumerate(self.layer_types) if kind == CONV)

    @property
    def attention_layers(self) -> tuple[int, ...]:
        return tuple(i for i, kind in enumerate(self.layer_types) if kind == FULL_ATTENTION)

    def source_tensors(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor that a checkpoint of this architecture holds (transformers' state dict)."""
        hidden, inner = self.hidden_size, self.intermediate_size
        query, key_value = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, hidden)}
        for i, kind in enumerate(self.layer_types):
            layer = f"model.layers.{i}."
            if kind == CONV:
                tensors[layer + "conv.conv.weight"] = (hidden, 1, self.conv_L_cache)
                tensors[layer + "conv.in_proj.weight"] = (3 * hidden, hidden)
                tensors[layer + "conv.out_proj.weight"] = (hidden, hidden)
                if self.conv_bias:
                    tensors[layer + "conv.conv.bias"] = (hidden,)
                    tensors[layer + "conv.in_proj.bias"] = (3 * hidden,)
                    tensors[layer + "conv.out_proj.bias"] = (hidden,)
            else:
                tensors[layer + "self_attn.q_proj.weight"] = (query, hidden)
                tensors[layer + "self_attn.k_proj.weight"] = (key_value, hidden)
                tensors[layer + "self_attn.v_proj.weight"] = (key_value, hidden)
                tensors[layer + "self_attn.out_proj.weight"] = (hidden, query)
                tensors[layer + "self_attn.q_layernorm.weight"] = (self.head_dim,)
                tensors[layer + "self_attn.k_layernorm.weight"] = (self.head_dim,)
            tensors[layer + "feed_forward.w1.weight"] = (inner, hidden)
            tensors[layer + "feed_forward.w3.weight"] = (inner, hidden)
            tensors[layer + "feed_forward.w2.weight"] = (hidden, inner)
            tensors[layer + "operator_norm.weight"] = (hidden,)
            tensors[layer + "ffn_norm.weight"] = (hidden,)
        tensors["model.embedding_norm.weight"] = (hidden,)
        if not self.tie_word_embeddings:
            tensors["lm_head.weight"] = (self.vocab_size, hidden)
        return tensors

    @property
    def num_parameters(self) -> int:
        total = 0
        for shape in self.source_tensors().values():
            count = 1
            for size in shape:
                count *= size
            total += count
        return total


def read_config(folder: Path) -> dict[str, Any]:
    """The JSON object in `folder`/config.json.

    Raises:
        SourceError: the folder or the file is missing, or the file is a link out of the folder.
        ConfigError: the file is no JSON object.
    """
    if not _is_folder(folder):
        raise SourceError(f"{folder} is not a folder; give the folder of a checkpoint, or a hub id such as owner/name")
    path = find_file(folder, "config.json", SourceError)
    if path is None:
        raise SourceError(f"{folder} has no config.json; give the folder that `save_pretrained` wrote")
    return read_object(path, ConfigError, "restore it from the checkpoint's source", folder=folder)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name longer than the file system takes
        return False


def adjusted_ff_dim(config: Mapping[str, Any], ff_dim: int) -> int:
    """The FFN width that transformers' `Lfm2MLP` makes of `block_ff_dim`."""
    if not boolean(config, "block_auto_adjust_ff_dim", default=True):
        return ff_dim
    width = int(2 * ff_dim / 3)
    if config.get("block_ffn_dim_multiplier", 1.0) is None:
        return width
    multiplier = number(config, MULTIPLIERS, "block_ffn_dim_multiplier", default=1.0)
    multiple_of = integer(config, "block_multiple_of", default=256)
    width = int(multiplier * width)
    return multiple_of * -(-width // multiple_of)


def parse_spec(config: Mapping[str, Any]) -> ModelSpec:
    """The :class:`ModelSpec` of a config.json as transformers or the hub writes it.

    Raises:
        ConfigError: another architecture, a missing field, two fields that contradict each other, or a feature that the
            tracer has not been proven on; the message names the field.
    """
    model_type = config.get("model_type")
    if model_type != "lfm2":
        raise ConfigError(
            f"config.json: model_type is {shown(model_type)}, expected 'lfm2'; this tool exports LFM2 text models only"
        )
    _check_purpose(config)
    if config.get("quantization_config") is not None:
        raise ConfigError("config.json: quantization_config is set; export from the unquantized checkpoint instead")
    for names in ALIASES:
        check_equal(config, names)
    for name in ALWAYS_ON:
        if config.get(name) is not None and config[name] is not True:
            raise ConfigError(f"config.json: {name} is {shown(config[name])}, expected true; nothing else is proven")
    hidden_size = integer(config, "hidden_size", "block_dim")
    heads = integer(config, "num_attention_heads", "num_heads")
    key_value_heads = integer(config, "num_key_value_heads")
    if heads % key_value_heads:
        raise ConfigError(
            f"config.json: num_attention_heads is {heads}, expected a multiple of num_key_value_heads {key_value_heads}"
        )
    if config.get("head_dim") is not None:
        head_dim = integer(config, "head_dim")
    elif hidden_size % heads:
        raise ConfigError(
            f"config.json: hidden_size {hidden_size} is no multiple of num_attention_heads {heads}; state head_dim"
        )
    else:
        head_dim = hidden_size // heads
    if head_dim % 8:
        raise ConfigError(
            f"config.json: head_dim is {head_dim}, expected a multiple of 8 (GroupQueryAttention's kernels need it)"
        )
    return ModelSpec(
        vocab_size=integer(config, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_ffn_width(config),
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=head_dim,
        conv_L_cache=integer(config, "conv_L_cache"),
        conv_bias=boolean(config, "conv_bias", default=False),
        layer_types=_layer_types(config),
        tie_word_embeddings=_tied(config),
        norm_eps=number(config, EPSILONS, "norm_eps", "block_norm_eps"),
        rope_theta=_rope_theta(config),
        max_position_embeddings=integer(config, "max_position_embeddings"),
    )


def _check_purpose(config: Mapping[str, Any]) -> None:
    """That the weights are those of a causal language model: other classes have the same tensors, or nearly so.

    `Lfm2Model` is refused too, though a tied head could be put on it: retrieval and embedding models are saved so, and
    what they were trained for is not to write.
    """
    stated = config.get("architectures")
    if stated is not None and stated not in ([], [ARCHITECTURE]):
        hint = "give a causal language model"
        if stated == ["Lfm2Model"]:
            hint = "if it is one that was saved without its head, load it with Lfm2ForCausalLM and save that"
        raise ConfigError(
            f"config.json: architectures is {shown(stated)}, expected ['{ARCHITECTURE}'], a model that "
            f"writes text; {hint}"
        )
    if config.get("is_causal") is not None and config["is_causal"] is not True:
        raise ConfigError(
            f"config.json: is_causal is {shown(config['is_causal'])}, expected true; its attention looks at later "
            "tokens and it cannot write text: give a causal language model"
        )


def _tied(config: Mapping[str, Any]) -> bool:
    return boolean(config, "tie_word_embeddings", "tie_embedding", default=True)


def _ffn_width(config: Mapping[str, Any]) -> int:
    """Two spellings: `block_ff_dim` is always the width before the adjustment.

    `intermediate_size` is too, for transformers reads it so; a config that holds both must agree on either reading.
    """
    before = integer(config, "block_ff_dim", "intermediate_size")
    width = adjusted_ff_dim(config, before)
    if not 1 <= width <= MAX_SIZES["intermediate_size"]:
        raise ConfigError(
            f"config.json: the FFN width {before} becomes {width} when adjusted (block_auto_adjust_ff_dim), expected 1 "
            f"to {MAX_SIZES['intermediate_size']:,}; correct it as the checkpoint's source has it"
        )
    stated = config.get("intermediate_size")
    if stated is not None and stated not in (before, width):
        raise ConfigError(
            f"config.json contradicts itself: intermediate_size is {shown(stated)} but block_ff_dim {before} means "
            f"{before} or, adjusted, {width}; make them agree or remove one"
        )
    return width


def _layer_types(config: Mapping[str, Any]) -> tuple[LayerType, ...]:
    count = integer(config, "num_hidden_layers")
    indices = config.get("full_attn_idxs")
    if indices is not None:
        if not isinstance(indices, list):
            raise ConfigError(f"config.json: full_attn_idxs is {shown(indices)}, expected a list of layer numbers")
        if len(indices) > MAX_LAYERS:
            raise ConfigError(
                f"config.json: full_attn_idxs has {len(indices):,} entries, expected at most {MAX_LAYERS:,}"
            )
        bad = [i for i in indices if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < count]
        if bad:
            raise ConfigError(f"config.json: full_attn_idxs holds {shown(bad[0])}, expected 0 to {count - 1}")
    types = _stated_layer_types(config, count, indices)
    if FULL_ATTENTION not in types:
        raise ConfigError(
            "config.json asks for conv layers alone; expected a full_attention layer among them: transformers cannot "
            "run such a model with a cache, so there is nothing to prove its export against"
        )
    return types


def _stated_layer_types(config: Mapping[str, Any], count: int, indices: list[int] | None) -> tuple[LayerType, ...]:
    types = config.get("layer_types")
    if types is None:
        if indices is None:
            raise ConfigError(
                "config.json has neither layer_types nor full_attn_idxs; add one to say which layer is which"
            )
        return tuple(FULL_ATTENTION if i in indices else CONV for i in range(count))
    if not isinstance(types, list):
        raise ConfigError(f"config.json: layer_types is {shown(types)}, expected a list of 'conv' and 'full_attention'")
    if len(types) != count:
        raise ConfigError(
            f"config.json contradicts itself: num_hidden_layers is {count} but layer_types has {len(types)} entries; "
            "make them agree"
        )
    unknown = [kind for kind in types if kind not in (CONV, FULL_ATTENTION)]
    if unknown:
        raise ConfigError(f"config.json: layer_types holds {shown(unknown[0])}, expected 'conv' or 'full_attention'")
    attention = [i for i, kind in enumerate(types) if kind == FULL_ATTENTION]
    if indices is not None and sorted(set(indices)) != attention:
        raise ConfigError(
            f"config.json contradicts itself: full_attn_idxs is {shown(sorted(indices))} but layer_types has "
            f"attention at {shown(attention)}; make them agree or remove one"
        )
    return cast("tuple[LayerType, ...]", tuple(types))


def _rope_theta(config: Mapping[str, Any]) -> float:
    """`rope_theta`, or the same inside `rope_parameters` as transformers 5 writes it; only plain RoPE is proven."""
    for name in ("rope_parameters", "rope_scaling"):
        parameters = config.get(name)
        if parameters is None:
            continue
        if not isinstance(parameters, dict):
            raise ConfigError(
                f"config.json: {name} is {shown(parameters)}, expected an object with rope_type and rope_theta"
            )
        kind = parameters.get("rope_type", parameters.get("type", "default"))
        if kind != "default":
            raise ConfigError(
                f"config.json: {name} asks for rope_type {shown(kind)}, expected 'default'; other kinds are not proven"
            )
        inner = parameters.get("rope_theta")
        outer = config.get("rope_theta")
        if inner is not None and outer is not None and inner != outer:
            raise ConfigError(
                f"config.json contradicts itself: rope_theta is {shown(outer)} but {name}.rope_theta is "
                f"{shown(inner)}; make them equal or remove one"
            )
        if inner is not None:
            return number(parameters, THETAS, "rope_theta")
    return number(config, THETAS, "rope_theta", "theta")
