"""The shipped model is what its card says: small, of LFM2's shape and vocabulary, trained, and able to answer."""

from __future__ import annotations

import json
import lzma
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, Lfm2ForCausalLM, PreTrainedTokenizerBase

SHIPPED = Path(__file__).parents[2] / "lfm2export" / "shipped"
CHUNKS, WIDTH = 16, 256

SPECIAL_TOKENS = {
    "<|pad|>": 0,
    "<|startoftext|>": 1,
    "<|endoftext|>": 2,
    "<|fim_pre|>": 3,
    "<|fim_mid|>": 4,
    "<|fim_suf|>": 5,
    "<|im_start|>": 6,
    "<|im_end|>": 7,
    "<|tool_list_start|>": 8,
    "<|tool_list_end|>": 9,
    "<|tool_call_start|>": 10,
    "<|tool_call_end|>": 11,
    "<|tool_response_start|>": 12,
    "<|tool_response_end|>": 13,
    "<|reserved_14|>": 14,
    "<|reserved_63|>": 63,
}

CANDIDATE_TOOL = {
    "name": "get_candidate_status",
    "description": "Retrieves the current status of a candidate in the recruitment process",
    "parameters": {
        "type": "object",
        "properties": {"candidate_id": {"type": "string", "description": "Unique identifier for the candidate"}},
        "required": ["candidate_id"],
    },
}

CARD_CHAT = """<|startoftext|><|im_start|>system
You are a helpful assistant trained by Liquid AI.<|im_end|>
<|im_start|>user
What is C. elegans?<|im_end|>
<|im_start|>assistant
It's a tiny nematode that lives in temperate soil environments.<|im_end|>
"""

CARD_TOOL_CHAT = (
    "<|startoftext|><|im_start|>system\n"
    'List of tools: <|tool_list_start|>[{"name": "get_candidate_status", "description": "Retrieves the current status '
    'of a candidate in the recruitment process", "parameters": {"type": "object", "properties": {"candidate_id": {"'
    'type": "string", "description": "Unique identifier for the candidate"}}, "required": ["candidate_id"]}}]'
    "<|tool_list_end|><|im_end|>\n"
    "<|im_start|>user\nWhat is the current status of candidate ID 12345?<|im_end|>\n"
    '<|im_start|>assistant\n<|tool_call_start|>[get_candidate_status(candidate_id="12345")]<|tool_call_end|>'
    "Checking the current status of candidate ID 12345.<|im_end|>\n"
    '<|im_start|>tool\n<|tool_response_start|>{"candidate_id": "12345", "status": "Interview Scheduled", "position": '
    '"Clinical Research Associate", "date": "2023-11-20"}<|tool_response_end|><|im_end|>\n'
    '<|im_start|>assistant\nThe candidate with ID 12345 is currently in the "Interview Scheduled" stage for the '
    "position of Clinical Research Associate, with an interview date set for 2023-11-20.<|im_end|>\n"
)

WEATHER_TOOL = {
    "name": "get_weather",
    "description": "Get current weather information for a location",
    "parameters": {
        "type": "object",
        "properties": {
            "location": {"type": "string", "description": "The city and state, e.g. San Francisco, CA"},
            "unit": {
                "type": "string",
                "enum": ["celsius", "fahrenheit"],
                "description": "The unit of temperature to use",
            },
        },
        "required": ["location"],
    },
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(SHIPPED)


@pytest.fixture(scope="module")
def model() -> Lfm2ForCausalLM:
    return Lfm2ForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def heldout() -> str:
    with lzma.open(SHIPPED / "heldout.txt.xz", "rt", encoding="utf-8") as file:
        return file.read()


def read_json(name: str) -> dict[str, Any]:
    return json.loads((SHIPPED / name).read_text(encoding="utf-8"))


def parse_card_chat(text: str) -> list[dict[str, str]]:
    """The messages of a rendered conversation, told apart by nothing but the card's own markers."""
    messages = []
    for turn in text.removeprefix("<|startoftext|>").split("<|im_start|>")[1:]:
        role, _, content = turn.removesuffix("<|im_end|>\n").partition("\n")
        marks = ("<|tool_response_start|>", "<|tool_response_end|>")
        messages.append({"role": role, "content": content.removeprefix(marks[0]).removesuffix(marks[1])})
    return messages


def greedy(
    model: Lfm2ForCausalLM, tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], tools: list[dict] | None
) -> str:
    inputs = tokenizer.apply_chat_template(
        messages, tools=tools, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    generated = model.generate(**inputs, do_sample=False, repetition_penalty=1.0, max_new_tokens=48)
    return tokenizer.decode(generated[0, inputs["input_ids"].shape[1] :])


def test_every_file_is_there() -> None:
    expected = {
        "LICENSE",
        "NOTICE",
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "heldout.txt.xz",
        "model.safetensors",
        "provenance.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert expected <= {path.name for path in SHIPPED.iterdir()}


def test_weights_are_small_bfloat16_and_tied() -> None:
    path = SHIPPED / "model.safetensors"
    assert path.stat().st_size <= 12_000_000
    with safe_open(path, "pt") as weights:
        names = set(weights.keys())
        tensors = {name: weights.get_tensor(name) for name in names}
    assert "lm_head.weight" not in names
    assert {"model.embed_tokens.weight", "model.embedding_norm.weight", "model.layers.0.conv.conv.weight"} <= names
    assert all(tensor.dtype == torch.bfloat16 and tensor.isfinite().all() for tensor in tensors.values())
    parameters = sum(tensor.numel() for tensor in tensors.values())
    assert 3_000_000 <= parameters <= 6_000_000
    assert parameters == read_json("provenance.json")["figures"]["parameters"]


def test_config_has_the_shape_of_the_family() -> None:
    config = read_json("config.json")
    attention = config["full_attn_idxs"]
    assert 0 < len(attention) < config["num_hidden_layers"] and 0 not in attention
    assert config["hidden_size"] // config["num_attention_heads"] == 64
    assert config["block_ff_dim"] % 256 == 0 and not config["block_auto_adjust_ff_dim"]
    assert config["vocab_size"] % 64 == 0
    assert (config["conv_L_cache"], config["norm_eps"], config["rope_theta"]) == (3, 1e-5, 1_000_000.0)
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 7, 0)


def test_transformers_reads_the_config_as_meant(model: Lfm2ForCausalLM) -> None:
    source = read_json("config.json")
    assert model.config.intermediate_size == source["block_ff_dim"]
    assert model.config.rope_parameters["rope_theta"] == source["rope_theta"]
    attention = [i for i, kind in enumerate(model.config.layer_types) if kind == "full_attention"]
    assert attention == source["full_attn_idxs"]
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert (model.generation_config.temperature, model.generation_config.min_p) == (0.3, 0.15)


def test_special_tokens_have_the_ids_of_lfm2(tokenizer: PreTrainedTokenizerBase) -> None:
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS} == SPECIAL_TOKENS
    for token, index in SPECIAL_TOKENS.items():
        assert tokenizer.encode(f"a{token}b", add_special_tokens=False)[1:-1] == [index]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 7, 0)
    assert len(tokenizer) == read_json("config.json")["vocab_size"]


def test_every_row_of_the_embedding_has_a_token(tokenizer: PreTrainedTokenizerBase, model: Lfm2ForCausalLM) -> None:
    assert sorted(tokenizer.get_vocab().values()) == list(range(model.config.vocab_size))


@pytest.mark.parametrize(
    "text",
    [
        "The capital of France is Paris.",
        "def f(x):\n    return x ** 2  # two spaces\n\n\n\tand a tab",
        "naïve café, 北京, 서울, القاهرة, 🙂, 1234567",
        "  leading and trailing  ",
        "",
    ],
)
def test_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids[0] == 1 and ids.count(1) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_template_renders_the_cards_conversation(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.apply_chat_template(parse_card_chat(CARD_CHAT), tokenize=False) == CARD_CHAT


def test_template_renders_the_cards_tool_conversation(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = parse_card_chat(CARD_TOOL_CHAT)[1:]
    assert tokenizer.apply_chat_template(messages, tools=[CANDIDATE_TOOL], tokenize=False) == CARD_TOOL_CHAT


def test_template_appends_tools_to_the_system_prompt(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(messages, tools=[{"name": "f"}, {"name": "g"}], tokenize=False)
    assert text == (
        "<|startoftext|><|im_start|>system\nBe brief.\n"
        'List of tools: <|tool_list_start|>[{"name": "f"}, {"name": "g"}]<|tool_list_end|><|im_end|>\n'
        "<|im_start|>user\nHi<|im_end|>\n"
    )


def test_template_opens_the_assistants_turn_and_starts_once(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == "<|startoftext|><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ids.count(1) == 1 and tokenizer.decode(ids) == text


def test_template_uses_no_tag_that_javascript_lacks() -> None:
    assert "generation %}" not in (SHIPPED / "chat_template.jinja").read_text(encoding="utf-8")


def test_heldout_text_is_large_and_has_both_kinds(heldout: str) -> None:
    assert len(heldout.encode()) >= 200_000
    assert heldout.count("<|startoftext|>") > 50
    assert heldout.count("<|startoftext|><|im_start|>") >= 20


def test_perplexity_is_under_a_third_of_a_unigram_models(
    tokenizer: PreTrainedTokenizerBase, model: Lfm2ForCausalLM, heldout: str
) -> None:
    """The unigram model here has seen the held-out counts themselves, so it is better than any honest one."""
    stream = np.array(tokenizer.encode(heldout, add_special_tokens=False))
    starts = np.linspace(0, len(stream) - WIDTH, CHUNKS, dtype=int)
    rows = torch.from_numpy(np.stack([stream[start : start + WIDTH] for start in starts]))  # [CHUNKS, WIDTH]
    counts = np.bincount(stream, minlength=model.config.vocab_size)
    unigram = math.exp(-np.log(counts[rows[:, 1:].numpy()] / counts.sum()).mean())
    with torch.no_grad():
        perplexity = math.exp(model(rows, labels=rows).loss.item())
    assert perplexity < unigram / 3
    assert perplexity < 1.5 * read_json("provenance.json")["figures"]["heldout_perplexity"]


def test_provenance_names_every_source() -> None:
    facts, readme = read_json("provenance.json"), (SHIPPED / "README.md").read_text(encoding="utf-8")
    notice = (SHIPPED / "NOTICE").read_text(encoding="utf-8")
    assert len(facts["sources"]) == 3
    for source in facts["sources"]:
        assert len(source["sha256"]) == 64 and source["sha256"] in readme and source["version"] in readme
        assert source["package"] in notice


@pytest.mark.parametrize("country", ["France", "Japan", "Germany"])
def test_it_answers_as_a_sentence_and_stops(
    tokenizer: PreTrainedTokenizerBase, model: Lfm2ForCausalLM, country: str
) -> None:
    """The form only: a model of this size and budget has the shape of an answer, not yet the right fact."""
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": f"What is the capital of {country}?"},
    ]
    assert re.fullmatch(r"The capital of [^.]+ is .+\.<\|im_end\|>", greedy(model, tokenizer, messages, None))


def test_it_calls_the_cards_tool(tokenizer: PreTrainedTokenizerBase, model: Lfm2ForCausalLM) -> None:
    """The call has a declared name and declared arguments; the city need not be the right one."""
    messages = [{"role": "user", "content": "What's the weather like in New York?"}]
    assert re.fullmatch(
        r'<\|tool_call_start\|>\[get_weather\(location="[^"]+", unit="(celsius|fahrenheit)"\)\]<\|tool_call_end\|>'
        r"<\|im_end\|>",
        greedy(model, tokenizer, messages, [WEATHER_TOOL]),
    )
