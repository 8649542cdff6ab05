"""Tiny LFM2 checkpoints with a real tokenizer, for the tests of the whole project.

`write_tiny(tmp_path / "tiny")` gives 4 layers (conv, attention, conv, attention), hidden 64, vocabulary 512; any config
field can be overridden: `write_tiny(folder, hidden_size=256, tie_word_embeddings=False, conv_bias=True)`.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from lfm2export.synth import Dtype, write_custom

#: LFM2's special tokens at their real ids, 0 to 13.
SPECIAL_TOKENS = (
    "<|pad|>",
    "<|startoftext|>",
    "<|endoftext|>",
    "<|fim_pre|>",
    "<|fim_mid|>",
    "<|fim_suf|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|tool_list_start|>",
    "<|tool_list_end|>",
    "<|tool_call_start|>",
    "<|tool_call_end|>",
    "<|tool_response_start|>",
    "<|tool_response_end|>",
)

#: 14 special tokens and 256 bytes.
SMALLEST_VOCABULARY = 270

CHAT_TEMPLATE = """{{- bos_token -}}
{%- for message in messages -%}
    {{- "<|im_start|>" + message["role"] + "\\n" + message["content"] + "<|im_end|>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "<|im_start|>assistant\\n" -}}
{%- endif -%}
"""

TEXT = """The river runs down from the hills to the sea, and the boats that go with it carry corn, coal and letters.
In the morning the market opens; people come from the villages around with bread, apples and cheese to sell.
What is the capital of France? The capital of France is Paris. How many days are there in a week? There are seven.
When the wind turns north, the fishermen mend their nets and tell the children stories about the winter of the long ice.
"""


def tiny_config(**overrides: Any) -> dict[str, Any]:
    """A config.json as transformers writes it; `overrides` replace fields, and None removes one.

    `num_hidden_layers` follows `layer_types` unless both are given.
    """
    config: dict[str, Any] = {
        "architectures": ["Lfm2ForCausalLM"],
        "block_auto_adjust_ff_dim": False,
        "bos_token_id": 1,
        "conv_L_cache": 3,
        "conv_bias": False,
        "eos_token_id": 7,
        "hidden_size": 64,
        "intermediate_size": 128,
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
        "max_position_embeddings": 2048,
        "model_type": "lfm2",
        "norm_eps": 1e-05,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": 512,
    }
    config |= overrides
    if "num_hidden_layers" not in config and config["layer_types"] is not None:
        config["num_hidden_layers"] = len(config["layer_types"])
    return {name: value for name, value in config.items() if value is not None}


def write_tiny(
    folder: Path,
    *,
    seed: int = 0,
    dtype: Dtype = "BF16",
    shard_bytes: int | None = None,
    tokenizer: bool = True,
    **overrides: Any,
) -> Path:
    """A checkpoint of `tiny_config(**overrides)` at `folder`, complete: weights, config, tokenizer, chat template."""
    config = tiny_config(**overrides)
    write_custom(config, folder, seed=seed, dtype=dtype, shard_bytes=shard_bytes)
    if tokenizer:
        write_companions(folder, vocab_size=config["vocab_size"])
    return folder


def write_companions(folder: Path, vocab_size: int = 512) -> None:
    """Tokenizer files, chat template, generation_config.json and LICENSE of a tiny checkpoint."""
    files = {
        "tokenizer.json": tokenizer_json(min(vocab_size, 512)),
        "tokenizer_config.json": json.dumps(
            {
                "add_bos_token": True,
                "bos_token": "<|startoftext|>",
                "clean_up_tokenization_spaces": False,
                "eos_token": "<|im_end|>",
                "model_max_length": 2048,
                "pad_token": "<|pad|>",
                "tokenizer_class": "PreTrainedTokenizerFast",
            },
            indent=2,
        ),
        "chat_template.jinja": CHAT_TEMPLATE,
        "generation_config.json": json.dumps(
            {
                "_from_model_config": True,
                "bos_token_id": 1,
                "do_sample": True,
                "eos_token_id": 7,
                "min_p": 0.15,
                "pad_token_id": 0,
                "repetition_penalty": 1.05,
                "temperature": 0.3,
            },
            indent=2,
        ),
        "LICENSE": "A licence for tests: do with these random numbers whatever you like.\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


@cache
def tokenizer_json(vocab_size: int = 512) -> str:
    """tokenizer.json of a byte-level BPE of at most `vocab_size` (270 or more) tokens; special ones at ids 0 to 13."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    assert vocab_size >= SMALLEST_VOCABULARY, vocab_size
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [TEXT],
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A", pair="<|startoftext|> $A $B", special_tokens=[("<|startoftext|>", 1)]
    )
    return str(tokenizer.to_str())


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None takes one away."""
    content = json.loads(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        if value is None:
            content.pop(key, None)
        else:
            content[key] = value
    path.write_text(json.dumps(content), encoding="utf-8")
