"""genai_config.json as onnxruntime-genai may get it: every key of it is known here, and has a value of a known kind.

genai hands what the file says to onnxruntime: a library to load, files to write, devices to open. So nothing passes
that is not on this list, which is what `package/genai.py` and genai's own builder write for lfm2; and what describes
the model says what config.json says, for genai allocates by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lfm2export.errors import ArtifactError
from lfm2export.package.genai import INPUT_NAMES, OUTPUT_NAMES
from lfm2export.spec import ModelSpec
from lfm2export.untrusted.json_reader import read_object
from lfm2export.untrusted.paths import named, path_inside, shown

CONFIG = "genai_config.json"

#: Execution providers that may be named, without options: an option can be a path.
PROVIDERS = ("cpu", "cuda", "dml", "webgpu")

#: Integers are held in 32 bits there.
MAX_INTEGER = 2**31 - 1

_TOKEN_IDS = ("bos_token_id", "pad_token_id", "bot_token_id", "eot_token_id", "bor_token_id", "eor_token_id")
_SEARCH_FLAGS = ("do_sample", "early_stopping", "past_present_share_buffer")
_SEARCH_INTEGERS = ("max_length", "min_length", "no_repeat_ngram_size", "random_seed", "top_k")
_SEARCH_NUMBERS = ("diversity_penalty", "length_penalty", "min_p", "repetition_penalty", "temperature", "top_p")
_SEARCH_ONES = ("batch_size", "num_beams", "num_return_sequences")

Rule = Callable[[Any], bool]


def read_checked(path: Path, folder: Path, spec: ModelSpec) -> dict[str, Any]:
    """The genai_config.json at `path` of the artifact `folder`, every key and value of it checked.

    Raises:
        ArtifactError: it is damaged, names what is no file inside the folder, or has a key or value that is not on the
            list; the message names the key.
    """
    value = read_object(path, ArtifactError, "build the artifact again", folder=folder)
    _check(value, _rules(spec), "")
    decoder = value.get("model", {}).get("decoder", {})
    path_inside(folder, decoder.get("filename"), CONFIG, ArtifactError)
    return value


def _rules(spec: ModelSpec) -> dict[str, Any]:
    """Key -> the rules of what is below it, or whether a value may stand there."""
    one_id = _integer(0, spec.vocab_size - 1)
    return {
        "model": {
            **dict.fromkeys(_TOKEN_IDS, one_id),
            "context_length": _integer(1, MAX_INTEGER),
            "decoder": {
                "session_options": {
                    "log_id": lambda value: value == "onnxruntime-genai",
                    "provider_options": _providers,
                },
                "filename": lambda value: isinstance(value, str),
                "head_size": _same(spec.head_dim),
                "hidden_size": _same(spec.hidden_size),
                "inputs": {key: _same(name) for key, name in INPUT_NAMES.items()},
                "outputs": {key: _same(name) for key, name in OUTPUT_NAMES.items()},
                "num_attention_heads": _same(spec.num_attention_heads),
                "num_hidden_layers": _same(spec.num_hidden_layers),
                "num_key_value_heads": _same(spec.num_key_value_heads),
                "layer_types": _same(list(spec.layer_types)),
                "conv_cache_size": _integer(spec.conv_L_cache - 1, spec.conv_L_cache),
            },
            "eos_token_id": lambda value: one_id(value) or (isinstance(value, list) and all(map(one_id, value))),
            "type": _same("lfm2"),
            "vocab_size": _same(spec.vocab_size),
        },
        "search": {
            **dict.fromkeys(_SEARCH_FLAGS, lambda value: isinstance(value, bool)),
            **dict.fromkeys(_SEARCH_INTEGERS, _integer(-1, MAX_INTEGER)),
            **dict.fromkeys(_SEARCH_NUMBERS, _is_number),
            **dict.fromkeys(_SEARCH_ONES, _same(1)),
        },
    }


def _check(value: Any, rules: Mapping[str, Any] | Rule, place: str) -> None:
    if callable(rules):
        if not rules(value):
            raise ArtifactError(
                f"{CONFIG}: {place} is {shown(value)}, which is not what this model has; onnxruntime-genai is not "
                "given it: build the artifact again"
            )
        return
    if not isinstance(value, dict):
        raise ArtifactError(f"{CONFIG}: {place} is {shown(value)}, expected an object; build the artifact again")
    for key, inner in value.items():
        below = f"{place}.{named(key)}".lstrip(".")
        if key not in rules:
            raise ArtifactError(
                f"{CONFIG}: {below} is not a key of this model; onnxruntime-genai is not given it, for such a key can "
                "load a library or write a file: build the artifact again"
            )
        _check(inner, rules[key], below)


def _same(expected: Any) -> Rule:
    """Equal and of the same type: a true is no 1, and a 1.0 is none."""
    return lambda value: type(value) is type(expected) and value == expected


def _integer(least: int, most: int) -> Rule:
    return lambda value: type(value) is int and least <= value <= most


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= MAX_INTEGER


def _providers(value: Any) -> bool:
    """A list of {name: {}}."""
    return isinstance(value, list) and all(
        isinstance(one, dict) and all(name in PROVIDERS and options == {} for name, options in one.items())
        for one in value
    )
