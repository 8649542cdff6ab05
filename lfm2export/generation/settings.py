"""generation_config.json: the one reader, which takes it as transformers 5.24 does.

Nothing samples unless the file says `"do_sample": true`; then top_k is 50 where the file does not say. A repetition
penalty is applied either way. Every value is checked, used or not: what is wrong here is wrong in some runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lfm2export.errors import ConfigError
from lfm2export.generation.sampling import LIMITS, Sampling, in_range
from lfm2export.untrusted.json_reader import read_object
from lfm2export.untrusted.paths import find_file, shown

FILE = "generation_config.json"

#: What transformers takes for top_k where it samples and nothing else is said.
DEFAULT_TOP_K = 50

#: Values that change what is generated and that `generate` has no code for, with those that change nothing.
UNUSED: Mapping[str, tuple[Any, ...]] = {
    "bad_words_ids": (),
    "constraints": (),
    "encoder_repetition_penalty": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "force_words_ids": (),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "penalty_alpha": (0,),
    "sequence_bias": (),
    "suppress_tokens": ([],),
    "top_h": (),
    "typical_p": (1,),
    "watermarking_config": (),
}


def read_generation(folder: Path) -> dict[str, Any] | None:
    """The generation_config.json of `folder`, its values checked; None where there is none. Token ids are checked with
    the tokenizer's (`text.token_ids`).

    Raises:
        ConfigError: it is not a JSON object, or a value is of another type or range than it can have.
    """
    path = find_file(folder, FILE, ConfigError)
    if path is None:
        return None
    generation = read_object(path, ConfigError, "restore it, or remove it", folder=folder)
    do_sample = generation.get("do_sample")
    if do_sample is not None and type(do_sample) is not bool:
        raise _wrong(path, "do_sample", do_sample, "true or false")
    for name, (low, high) in LIMITS.items():
        value = generation.get(name)
        if value is None:
            continue
        if name == "top_k":
            if type(value) is not int or not low <= value <= high:
                raise _wrong(path, name, value, f"a whole number from {low:g} (off) to {high:.0f}")
        elif type(value) not in (int, float) or not in_range(name, value):
            off = "0 (greedy), or " if name == "temperature" else ""
            raise _wrong(path, name, value, f"{off}a number from {low:g} to {high:g}")
    if do_sample and generation.get("temperature") == 0:
        raise _wrong(path, "temperature", generation["temperature"], "a number above 0 with do_sample")
    for name in ("max_length", "max_new_tokens", "min_length", "min_new_tokens", "num_beams", "num_return_sequences"):
        value = generation.get(name)
        if value is not None and (type(value) is not int or not 0 <= value <= 2**31 - 1):
            raise _wrong(path, name, value, "a whole number")
    return generation


def stated_sampling(generation: Mapping[str, Any] | None, *, sample: bool | None = None) -> Sampling:
    """How `generation` says that tokens are chosen.

    sample: True and False go before the file's do_sample.
    """
    values = {name: value for name, value in (generation or {}).items() if name in LIMITS and value is not None}
    penalty = float(values.get("repetition_penalty", 1.0))
    if not (values_sample(generation) if sample is None else sample):
        return Sampling(repetition_penalty=penalty)
    return Sampling(
        temperature=float(values.get("temperature", 1.0)),
        min_p=values.get("min_p"),
        repetition_penalty=penalty,
        top_k=values.get("top_k", DEFAULT_TOP_K),
        top_p=values.get("top_p"),
    )


def values_sample(generation: Mapping[str, Any] | None) -> bool:
    """Whether the file turns sampling on."""
    return bool((generation or {}).get("do_sample"))


def unused_values(generation: Mapping[str, Any] | None) -> list[str]:
    """Names of values that would change what is generated, and that `generate` does not know."""
    stated = {name: value for name, value in (generation or {}).items() if value is not None}
    return [name for name in UNUSED if name in stated and stated[name] not in UNUSED[name]]


def _wrong(path: Path, name: str, value: object, expected: str) -> ConfigError:
    return ConfigError(f"{path}: {name} is {shown(value)}, expected {expected}; correct it, or remove it")
