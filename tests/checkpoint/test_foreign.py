"""Adapters, wrapped modules, leftovers of quantization: one line each, and nothing is fetched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from damage import W1, change, refusal
from lfm2export.checkpoint import open_checkpoint
from lfm2export.errors import SourceError, TensorError
from tiny import write_tiny

BASE = "LiquidAI/LFM2-350M"


def put_adapter(folder: Path, **config: Any) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8} | config))
    (folder / "adapter_model.safetensors").write_bytes(b"not opened")


def test_an_adapter_beside_a_config(tiny: Path) -> None:
    (tiny / "model.safetensors").unlink()
    put_adapter(tiny, base_model_name_or_path=BASE)
    message = refusal(SourceError, tiny)
    assert message == (
        f"{tiny} holds a PEFT adapter of the base '{BASE}' (adapter_config.json), expected a whole model; load both "
        "with PEFT, merge_and_unload(), save_pretrained(FOLDER), and give that folder"
    )
    (tiny / "config.json").unlink()
    assert refusal(SourceError, tiny) == message


def test_an_adapter_left_beside_whole_weights(tiny: Path) -> None:
    put_adapter(tiny, base_model_name_or_path=BASE)
    assert refusal(SourceError, tiny) == (
        f"{tiny} holds whole weights and beside them a PEFT adapter of the base '{BASE}' (adapter_config.json), which "
        "an export would leave out; merge it (load both with PEFT, merge_and_unload(), save_pretrained(FOLDER)), or, "
        "if the weights have it already, take its files away"
    )
    (tiny / "adapter_config.json").unlink()
    refusal(SourceError, tiny, "of a base that it does not name (adapter_model.safetensors)")


@pytest.mark.parametrize(
    ("base", "named"), [("a\n`b`", "the base 'a\\n`b`'"), (None, "a base that"), (7, "a base that")]
)
def test_the_name_of_a_base_is_a_strangers(tiny: Path, base: Any, named: str) -> None:
    put_adapter(tiny, base_model_name_or_path=base)
    refusal(SourceError, tiny, named)


def test_a_damaged_adapter(tiny: Path) -> None:
    put_adapter(tiny)
    (tiny / "adapter_config.json").write_text("{")
    refusal(SourceError, tiny, "adapter_config.json is not valid JSON", "take the adapter's files away")


def renamed(edit: Callable[[str], str]) -> Callable[[dict[str, Any]], None]:
    def apply(tensors: dict[str, Any]) -> None:
        content = {edit(name): value for name, value in tensors.items()}
        tensors.clear()
        tensors.update(content)

    return apply


@pytest.mark.parametrize(
    ("edit", "parts"),
    [
        (
            lambda n: "_orig_mod." + n,
            ["begin with '_orig_mod.' (_orig_mod.model.", "torch.compile", "model._orig_mod."],
        ),
        (lambda n: n.replace("model.", "model._orig_mod."), ["hold '_orig_mod.' (model._orig_mod.", "torch.compile"]),
        (
            lambda n: "module." + n,
            ["begin with 'module.' (module.model.", "DataParallel", "model.module.save_pretrained"],
        ),
        (lambda n: "_fsdp_wrapped_module." + n, ["'_fsdp_wrapped_module.'", "FSDP", "full state dict"]),
        (lambda n: "base_model.model." + n, ["begin with 'base_model.'", "unmerged PEFT model", "merge_and_unload"]),
        (
            lambda n: "base_model.model." + n.replace("w1.weight", "w1.base_layer.weight"),
            ["hold 'base_layer.' (base_model.model.model.layers.0.feed_forward.w1.base_layer.weight)", "unmerged PEFT"],
        ),
        (
            lambda n: n.replace("w1.weight", "w1.qweight"),
            ["hold 'qweight.'", "a quantized model", "before it was quantized"],
        ),
        (lambda n: n.removeprefix("model."), ["has embed_tokens.weight", "expected model.embed_tokens.weight"]),
    ],
)
def test_names_that_say_what_was_saved(tiny: Path, edit: Callable[[str], str], parts: list[str]) -> None:
    change(tiny / "model.safetensors", renamed(edit))
    refusal(TensorError, tiny, *parts)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (W1.replace("weight", "lora_A.weight"), ["hold 'lora_A.'", "an unmerged adapter", "merge_and_unload"]),
        (W1.replace("weight", "lora_A.default.weight"), ["hold 'lora_A.'"]),
        (W1 + "_scale", ["hold 'weight_scale.'", "a quantized model"]),
        (W1.replace("weight", "weight.absmax"), ["hold 'absmax.'"]),
    ],
)
def test_leftovers_beside_whole_weights(tiny: Path, name: str, parts: list[str]) -> None:
    change(tiny / "model.safetensors", lambda tensors: tensors.update({name: tensors[W1][:8].clone()}))
    refusal(TensorError, tiny, *parts)


def test_plain_names_are_no_marks(tmp_path: Path) -> None:
    open_checkpoint(write_tiny(tmp_path / "plain", conv_bias=True, tie_word_embeddings=False))
