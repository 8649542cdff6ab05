"""generation_config.json as transformers reads it, and what the options of `generate` make of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lfm2export.errors import ConfigError, PromptError
from lfm2export.generation.defaults import Defaults, chosen_sampling, described, read_defaults
from lfm2export.generation.sampling import CARD, GREEDY, Sampling
from lfm2export.generation.settings import read_generation, stated_sampling, unused_values
from standin import CONFIG
from tiny import write_companions

CARDS = {"do_sample": True, "temperature": 0.3, "min_p": 0.15, "repetition_penalty": 1.05}


def written(folder: Path, content: Any) -> Path:
    (folder / "generation_config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "holds a JSON list"),
        ("[" * 200_000, "nested too deeply"),
        ('{"temperature": NaN}', "not valid JSON"),
        ({"temperature": "0.3"}, "temperature is '0.3', expected 0"),
        ({"temperature": True}, "temperature is True"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": 1e-46}, "temperature is 1e-46"),
        ('{"temperature": 1e999}', "not valid JSON"),
        ({"temperature": 0, "do_sample": True}, "expected a number above 0 with do_sample"),
        ({"top_k": -1}, "top_k is -1, expected a whole number from 0"),
        ({"top_k": 50.5}, "top_k is 50.5"),
        ({"top_k": 10**30}, "top_k is 1000"),
        ({"min_p": 2}, "min_p is 2"),
        ({"top_p": [1]}, r"top_p is \[1\]"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"do_sample": "yes"}, "do_sample is 'yes', expected true or false"),
        ({"do_sample": 1}, "do_sample is 1"),
        ({"num_beams": "4"}, "num_beams is '4'"),
    ],
)
def test_values_that_no_runtime_reads_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_generation(written(tmp_path, content))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"do_sample": None, "temperature": None},
        {"temperature": 0.5, "top_k": 20},
        {"temperature": 0},
        {"do_sample": False, "temperature": 0.5, "repetition_penalty": 1.1},
        {"do_sample": True},
        {"do_sample": True, "top_k": 0},
        {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9},
        CARDS,
    ],
)
def test_sampling_is_what_transformers_makes_of_the_file(tmp_path: Path, content: dict[str, Any]) -> None:
    """The processors that its `generate` would build, with their values."""
    import torch
    from transformers import GenerationConfig, Lfm2Config, Lfm2ForCausalLM

    found = stated_sampling(read_generation(written(tmp_path, content)))
    theirs = GenerationConfig.from_pretrained(tmp_path)
    theirs.update(**theirs._get_default_generation_params(), defaults_only=True)
    with torch.device("meta"):
        model = Lfm2ForCausalLM(Lfm2Config(hidden_size=8, num_hidden_layers=1, vocab_size=8, num_attention_heads=2))
    processors = {
        type(one).__name__: one for one in model._get_logits_processor(theirs, input_ids_seq_length=1, device="cpu")
    }

    def value(processor: str, attribute: str) -> Any:
        return getattr(processors[processor], attribute, None) if processor in processors else None

    assert theirs.do_sample == (not found.greedy)
    assert (value("RepetitionPenaltyLogitsProcessor", "penalty") or 1.0) == found.repetition_penalty
    if not found.greedy:
        assert (value("TemperatureLogitsWarper", "temperature") or 1.0) == found.temperature
        assert (value("TopKLogitsWarper", "top_k") or 0) == found.top_k
        assert (value("TopPLogitsWarper", "top_p") or 1.0) == (1.0 if found.top_p is None else found.top_p)
        assert value("MinPLogitsWarper", "min_p") == found.min_p


def defaults(**generation: Any) -> Defaults:
    return Defaults(frozenset({7}), stated_sampling(generation), generation, 2048)


def test_options_turn_sampling_on() -> None:
    silent, says = defaults(temperature=0.5), defaults(**CARDS)
    assert chosen_sampling(silent) == GREEDY and chosen_sampling(says) == CARD
    assert chosen_sampling(defaults()) == GREEDY
    assert chosen_sampling(silent, sample=True) == Sampling(temperature=0.5, top_k=50)
    assert chosen_sampling(defaults(), sample=True) == CARD
    assert chosen_sampling(defaults(), sample=True, temperature=1.0).temperature == 1.0
    assert chosen_sampling(defaults(), temperature=0.7) == Sampling(temperature=0.7, top_k=50)
    assert chosen_sampling(defaults(), min_p=0.1, top_k=0) == Sampling(temperature=1.0, min_p=0.1, top_k=0)
    assert chosen_sampling(says, greedy=True) == Sampling(repetition_penalty=1.05)
    assert chosen_sampling(defaults(), repetition_penalty=1.2) == Sampling(repetition_penalty=1.2)
    assert chosen_sampling(says, temperature=0).greedy
    for options in ({"temperature": 0.5}, {"sample": True}, {"top_k": 3}):
        with pytest.raises(PromptError, match=r"--greedy and --(temperature|sample|top-k) exclude each other"):
            chosen_sampling(says, greedy=True, **options)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="temperature is 1e-46, expected 0"):
        chosen_sampling(silent, temperature=1e-46)


def test_what_is_used_is_said() -> None:
    assert described(GREEDY) == "greedy"
    assert described(CARD) == "temperature 0.3, min_p 0.15, top_k 50, repetition_penalty 1.05"
    assert described(Sampling(repetition_penalty=1.2, top_k=50)) == "greedy, repetition_penalty 1.2"
    assert defaults().source == "there is no generation_config.json"
    assert defaults(temperature=0.5).source == "generation_config.json does not say do_sample"
    assert defaults(do_sample=False).source == "generation_config.json has do_sample false"
    assert defaults(**CARDS).source == "generation_config.json"
    assert unused_values({"num_beams": 4, "typical_p": 1.0, "suppress_tokens": [], "top_h": 0.4}) == [
        "num_beams",
        "top_h",
    ]


def test_defaults_come_from_the_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    found = read_defaults(tmp_path)
    assert (found.eos_ids, found.sampling, found.generation) == (frozenset({7}), GREEDY, {})
    assert found.length == CONFIG["max_position_embeddings"]
    found = read_defaults(written(tmp_path, {"eos_token_id": [2], "temperature": 0.5, "top_k": 50}))
    assert (found.eos_ids, found.sampling) == ({2, 7}, GREEDY)
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"eos_token_id": None}))
    with pytest.raises(ConfigError, match="no file names an eos_token_id"):
        read_defaults(tmp_path)


@pytest.mark.parametrize(("stated", "length"), [(64, 64), (10**30, 2048), (4096, 2048), (0, 2048), ("8", 2048)])
def test_model_max_length_is_the_default_length(tmp_path: Path, stated: Any, length: int) -> None:
    write_companions(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": stated}))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": 512, "max_position_embeddings": 2048}))
    assert read_defaults(tmp_path).length == length
