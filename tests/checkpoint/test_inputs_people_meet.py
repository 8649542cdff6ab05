"""Checkpoints that are handed to `build` and are none: one line, exit code 2, nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from damage import change, set_config
from lfm2export.cli import main
from lfm2export.errors import SourceError
from lfm2export.pipeline import build

ADAPTER = {"peft_type": "LORA", "r": 8, "target_modules": ["w1"], "base_model_name_or_path": "LiquidAI/LFM2-350M"}
MERGE = "load both with PEFT, merge_and_unload(), save_pretrained(FOLDER)"
W1 = "model.layers.0.feed_forward.w1"


def rename(edit: Callable[[str], str]) -> Callable[[Path], None]:
    def apply(tensors: dict[str, Any]) -> None:
        content = {edit(name): value for name, value in tensors.items()}
        tensors.clear()
        tensors.update(content)

    return lambda folder: change(folder / "model.safetensors", apply)


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))
    (folder / "adapter_model.safetensors").write_bytes(b"never opened")


def adapter_alone(folder: Path) -> None:
    adapter(folder)
    (folder / "model.safetensors").unlink()


def settings(**fields: Any) -> Callable[[Path], None]:
    return lambda folder: set_config(folder, **fields)


CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "bidirectional": (
        settings(architectures=["Lfm2BidirectionalModel"], is_causal=False),
        "config.json: architectures is ['Lfm2BidirectionalModel'], expected ['Lfm2ForCausalLM'], a model that writes "
        "text; give a causal language model",
    ),
    "sequence-classification": (
        settings(architectures=["Lfm2ForSequenceClassification"], num_labels=2),
        "config.json: architectures is ['Lfm2ForSequenceClassification'], expected ['Lfm2ForCausalLM'], a model that "
        "writes text; give a causal language model",
    ),
    "without a head": (
        settings(architectures=["Lfm2Model"]),
        "config.json: architectures is ['Lfm2Model'], expected ['Lfm2ForCausalLM'], a model that writes text; if it is "
        "one that was saved without its head, load it with Lfm2ForCausalLM and save that",
    ),
    "not causal": (
        settings(is_causal=False),
        "config.json: is_causal is False, expected true; its attention looks at later tokens and it cannot write text: "
        "give a causal language model",
    ),
    "quantized": (
        settings(quantization_config={}),
        "config.json: quantization_config is set; export from the unquantized checkpoint instead",
    ),
    "two-billion-layers": (
        settings(num_hidden_layers=2_000_000_000, full_attn_idxs=[0], layer_types=None),
        "config.json: num_hidden_layers is 2000000000, expected a positive integer, at most 1,024",
    ),
    "adapter-beside-config": (
        adapter_alone,
        "FOLDER holds a PEFT adapter of the base 'LiquidAI/LFM2-350M' (adapter_config.json), expected a whole model; "
        f"{MERGE}, and give that folder",
    ),
    "adapter-left-behind": (
        adapter,
        "FOLDER holds whole weights and beside them a PEFT adapter of the base 'LiquidAI/LFM2-350M' "
        f"(adapter_config.json), which an export would leave out; merge it ({MERGE}), or, if the weights have it "
        "already, take its files away",
    ),
    "compiled": (
        rename(lambda name: "_orig_mod." + name),
        "names of the checkpoint's tensors begin with '_orig_mod.' (_orig_mod.model.embed_tokens.weight), which "
        "torch.compile puts there, expected those of a plain model; save the module that was compiled: "
        "model._orig_mod.save_pretrained(FOLDER)",
    ),
    "unmerged-peft": (
        rename(lambda name: "base_model.model." + name.replace("w1.weight", "w1.base_layer.weight")),
        f"names of the checkpoint's tensors hold 'base_layer.' (base_model.model.{W1}.base_layer.weight), which an "
        f"unmerged PEFT model puts there, expected those of a plain model; {MERGE}",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_nothing_left_behind(tiny: Path, tmp_path: Path, case: str) -> None:
    damage, line = CASES[case]
    damage(tiny)
    result = CliRunner().invoke(main, ["build", str(tiny), "-o", str(tmp_path / "out"), "--no-verify"])
    assert result.exit_code == 2
    if line.startswith("FOLDER "):
        line = f"{tiny}{line.removeprefix('FOLDER')}"
    assert result.output == f"Error: {line}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]


def test_a_source_that_changes_during_a_build(tiny: Path, tmp_path: Path) -> None:
    """As when a download or a training goes on: no artifact of two halves."""

    def listen(stage: str, done: int, total: int | None, unit: str) -> None:
        if stage == "trace":
            with (tiny / "model.safetensors").open("r+b") as out:
                out.seek(-2, 2)
                out.write(b"\1\2")

    with pytest.raises(SourceError, match="changed while it was read: it was written to after it was opened"):
        build(str(tiny), dtypes=["fp32", "q4"], out=tmp_path / "out", progress=listen)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]
