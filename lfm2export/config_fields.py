"""One field of a config.json at a time: its type and its bounds, checked before anything of that size is made.

`config` may be any object that a stranger wrote. A field that is null counts as missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lfm2export.errors import ConfigError
from lfm2export.untrusted.paths import shown

#: Keys that spell one value in several ways: the name in transformers, then those of the released configs.
ALIASES = (
    ("hidden_size", "block_dim", "conv_dim", "conv_dim_out"),
    ("num_attention_heads", "num_heads"),
    ("norm_eps", "block_norm_eps"),
    ("tie_word_embeddings", "tie_embedding"),
    ("rope_theta", "theta"),
)

#: Every field that says something about the architecture, under all its names.
ARCHITECTURE_FIELDS = frozenset(
    {
        *(name for names in ALIASES for name in names),
        *("vocab_size", "num_key_value_heads", "head_dim", "conv_L_cache", "conv_bias", "max_position_embeddings"),
        *("num_hidden_layers", "layer_types", "full_attn_idxs", "rope_parameters", "rope_scaling"),
        *("intermediate_size", "block_ff_dim", "block_auto_adjust_ff_dim", "block_ffn_dim_multiplier"),
        "block_multiple_of",
    }
)

#: Switches of the released configs that transformers does not read: it computes as if they were on.
ALWAYS_ON = ("block_use_swiglu", "use_pos_enc")

#: Layers: the largest released model has 30. A config may state billions, and a list of them is made before any tensor
#: is compared with it.
MAX_LAYERS = 1024
#: The largest value of each size, far above every model of the family (65,536 tokens, hidden 2,048, 128,000 positions).
#: What allocates by a config whose tensors are not at hand (an artifact's caches) is bounded by it.
MAX_SIZES = {
    "vocab_size": 1 << 22,
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "block_ff_dim": 1 << 20,
    "block_multiple_of": 1 << 20,
    "num_attention_heads": 1 << 12,
    "num_key_value_heads": 1 << 12,
    "head_dim": 1 << 12,
    "conv_L_cache": 1 << 8,
    "num_hidden_layers": MAX_LAYERS,
    "max_position_embeddings": 1 << 28,
}
#: `norm_eps` is added to a mean of squares in float32: a smaller one vanishes, a larger one drowns it.
EPSILONS = (1e-30, 0.1)
#: Bases of RoPE: 1e4 to 1e7 in practice. Below 1 the angles grow with the dimension; a huge one underflows float32.
THETAS = (1.0, 1e15)
MULTIPLIERS = (1e-3, 1e3)


def integer(config: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    """A size under the first of `names` that is stated; bounded as `names[0]`.

    Raises:
        ConfigError: it is missing without a default, no integer, or out of bounds.
    """
    name, value = _first(config, names, default)
    limit = MAX_SIZES[names[0]]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
        raise ConfigError(f"config.json: {name} is {shown(value)}, expected a positive integer, at most {limit:,}")
    return value


def number(config: Mapping[str, Any], bounds: tuple[float, float], *names: str, default: float | None = None) -> float:
    """A number within `bounds`, integer or not; otherwise as :func:`integer`."""
    name, value = _first(config, names, default)
    low, high = bounds
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(f"config.json: {name} is {shown(value)}, expected a number from {low:g} to {high:g}")
    return float(value)


def boolean(config: Mapping[str, Any], *names: str, default: bool) -> bool:
    """true or false, and nothing that only counts as such; otherwise as :func:`integer`."""
    name, value = _first(config, names, default)
    if not isinstance(value, bool):
        raise ConfigError(f"config.json: {name} is {shown(value)}, expected true or false")
    return value


def check_equal(config: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """That those of `names` which are stated say the same.

    Raises:
        ConfigError: they differ.
    """
    stated = [name for name in names if config.get(name) is not None]
    for alias in stated[1:]:
        name = stated[0]
        if config[name] != config[alias]:
            raise ConfigError(
                f"config.json contradicts itself: {name} is {shown(config[name])} but {alias} is "
                f"{shown(config[alias])}; make them equal or remove one"
            )


def _first(config: Mapping[str, Any], names: tuple[str, ...], default: Any) -> tuple[str, Any]:
    for name in names:
        if config.get(name) is not None:
            return name, config[name]
    if default is None:
        raise ConfigError(f"config.json has no {names[0]}; add it as the checkpoint's source has it")
    return names[0], default
