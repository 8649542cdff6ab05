"""What a folder says about generating: stop tokens, sampling, length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lfm2export.errors import PromptError
from lfm2export.generation.sampling import CARD, LIMITS, Sampling
from lfm2export.generation.settings import read_generation, stated_sampling, values_sample
from lfm2export.spec import parse_spec, read_config
from lfm2export.text.folder import default_length
from lfm2export.text.token_ids import folder_token_ids
from lfm2export.text.tokenizer_file import read_tokenizer_settings


@dataclass(frozen=True)
class Defaults:
    """eos_ids: every token that some file calls the end. sampling: as generation_config.json says, greedy where it says
    nothing. generation: that file, {} where there is none. length: tokens of prompt and answer."""

    eos_ids: frozenset[int]
    sampling: Sampling
    generation: Mapping[str, Any] = field(repr=False)
    length: int

    @property
    def source(self) -> str:
        """Why tokens are chosen so, for people."""
        if not self.generation:
            return "there is no generation_config.json"
        if values_sample(self.generation):
            return "generation_config.json"
        stated = "has do_sample false" if self.generation.get("do_sample") is False else "does not say do_sample"
        return f"generation_config.json {stated}"


def read_defaults(folder: Path) -> Defaults:
    """Stop tokens, sampling and length of `folder`.

    Raises:
        ConfigError: config.json or generation_config.json is damaged or holds a value that it cannot, or no file names
            an eos_token_id.
        TokenizerError: a file of the tokenizer is damaged.
    """
    config = read_config(folder)
    spec = parse_spec(config)
    generation = read_generation(folder)
    tokens = folder_token_ids(folder, config, generation, spec.vocab_size)
    return Defaults(
        eos_ids=frozenset(tokens.eos),
        sampling=stated_sampling(generation),
        generation=generation or {},
        length=default_length(read_tokenizer_settings(folder), spec),
    )


def chosen_sampling(
    defaults: Defaults,
    *,
    greedy: bool = False,
    sample: bool = False,
    temperature: float | None = None,
    min_p: float | None = None,
    top_k: int | None = None,
    repetition_penalty: float | None = None,
) -> Sampling:
    """The folder's sampling, changed by what is asked for.

    greedy turns sampling off. sample turns it on: by the file's values, or by the model card's where it has none. So
    does any of the three values that mean nothing without; the rest is then as transformers' `generate` completes it. A
    repetition penalty goes with either.

    Raises:
        PromptError: a value is outside its range, or greedy and another choice exclude each other.
    """
    options: dict[str, Any] = {"temperature": temperature, "min_p": min_p, "top_k": top_k}
    drawn = {name: value for name, value in options.items() if value is not None}
    if greedy and (drawn or sample):
        other = next(iter(drawn), "sample").replace("_", "-")
        raise PromptError(f"--greedy and --{other} exclude each other; leave one out")
    values = {**drawn, "repetition_penalty": repetition_penalty} if repetition_penalty is not None else drawn
    if sample and not any(defaults.generation.get(name) is not None for name in LIMITS):
        return replace(CARD, **values)
    on = False if greedy else True if sample or drawn else None
    return replace(stated_sampling(defaults.generation, sample=on), **values)


def described(sampling: Sampling) -> str:
    """`sampling` for people: "greedy", or its values, those that are on."""
    how = ["greedy"]
    if not sampling.greedy:
        off = {"min_p": 0, "top_k": 0, "top_p": 1}
        on = {name: getattr(sampling, name) for name in off if getattr(sampling, name) not in (None, off[name])}
        how = [f"temperature {sampling.temperature:g}", *(f"{name} {value:g}" for name, value in on.items())]
    if sampling.repetition_penalty != 1:
        how.append(f"repetition_penalty {sampling.repetition_penalty:g}")
    return ", ".join(how)
