"""The model card's ONNX Runtime loop, run as it stands in the card except for where the files are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from lfm2export.contract import MODEL_FILES, cache_dtype
from lfm2export.hub import shipped_folder
from lfm2export.recipes import RECIPES

CARD = Path(__file__).parent / "data" / "card_loop.py.txt"

#: The card's own tokens, and how many of ours are enough.
CARD_LIMIT, LIMIT = "max_new_tokens = 1024", 48


def run_card(folder: Path, dtype: str) -> dict[str, Any]:
    """Execute the card's program on one file of `folder`; its variables afterwards."""
    code = CARD.read_text(encoding="utf-8")
    replacements = {
        "from huggingface_hub import hf_hub_download\n": "",
        '"onnx-community/LFM2-2.6B-ONNX"': repr(str(folder)),
        '"model_q4.onnx"': repr(MODEL_FILES[dtype]),
        CARD_LIMIT: f"max_new_tokens = {LIMIT}",
    }
    if cache_dtype(dtype) == "float16":
        replacements["dtype=np.float32"] = "dtype=np.float16"
    for old, new in replacements.items():
        assert old in code
        code = code.replace(old, new)
    variables: dict[str, Any] = {"hf_hub_download": lambda repo_id, filename: f"{repo_id}/{filename}"}
    exec(compile(code, str(CARD), "exec"), variables)
    return variables


@pytest.mark.parametrize("dtype", RECIPES)
def test_the_cards_loop_runs_on_every_file(
    shipped_artifact: Path, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = run_card(shipped_artifact, dtype)
    tokens = ran["generated_tokens"]
    assert 0 < tokens.shape[1] <= LIMIT
    assert ran["tokenizer"].batch_decode(tokens, skip_special_tokens=True)[0] in capsys.readouterr().out


def test_its_fp32_tokens_are_those_of_generate(shipped_artifact: Path) -> None:
    ran = run_card(shipped_artifact, "fp32")
    inputs = ran["inputs"]
    model = AutoModelForCausalLM.from_pretrained(shipped_folder(), dtype=torch.float32, attn_implementation="eager")
    wanted = model.generate(
        torch.from_numpy(np.asarray(inputs["input_ids"])),
        attention_mask=torch.from_numpy(np.asarray(inputs["attention_mask"])),
        do_sample=False,
        max_new_tokens=LIMIT,
        repetition_penalty=1.0,
        temperature=None,
        min_p=None,
    )[0, inputs["input_ids"].shape[1] :]
    assert ran["generated_tokens"][0].astype(int).tolist() == wanted.tolist()
