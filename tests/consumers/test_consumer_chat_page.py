"""The chat page, used as on a phone: it loads, streams, says how fast, fits the screen, explains what is missing."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lfm2export.consumers.asked import Asked
from lfm2export.consumers.chat_page import FOLDER, write_chat_page
from lfm2export.consumers.locate import JS
from lfm2export.consumers.prompts import CARD_MAX_NEW_TOKENS, Prompt
from lfm2export.errors import ArtifactError, OutputError

pytestmark = pytest.mark.consumer

PHONE = {"width": 390, "height": 844}
QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def site(shipped_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site that holds the artifact under a name with a space, and the page beside it."""
    root = tmp_path_factory.mktemp("site")
    shutil.copytree(shipped_artifact, root / "my model")
    write_chat_page(root / "my model")
    return root


def visit(site: Path, tmp_path: Path, **fields: Any) -> dict[str, Any]:
    request, answer = tmp_path / "request.json", tmp_path / "answer.json"
    given = {
        "folder": str(site),
        "page": f"my model/{FOLDER}/",
        "dtype": "q4",
        "device": "wasm",
        "greedy": True,
        "messages": [QUESTION],
        "viewport": PHONE,
        **fields,
    }
    request.write_text(json.dumps(given), encoding="utf-8")
    ran = subprocess.run(
        ["node", str(JS / "visit.mjs"), str(request), str(answer)], capture_output=True, text=True, timeout=300
    )
    assert answer.exists(), ran.stderr
    found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_conversation_on_a_phone(site: Path, tmp_path: Path, scheme: str) -> None:
    picture = tmp_path / f"{scheme}.png"
    found = visit(site, tmp_path, scheme=scheme, screenshot=str(picture))
    question = Prompt(
        "q", messages=({"role": "user", "content": QUESTION},), penalty=True, max_new_tokens=CARD_MAX_NEW_TOKENS
    )
    asked = Asked(site / "my model", "q4")
    answer = asked.tokenizer.decode(asked.answer(question).tokens, skip_special=True)
    assert found["turns"][0] == ["user", QUESTION]
    assert found["turns"][1] == ["assistant", answer]
    assert "tokens/s" in found["status"]
    assert found["foreign"] == []
    assert found["errors"] == []
    page, screen = found["width"]
    assert page <= screen == PHONE["width"]
    pixels = np.asarray(Image.open(picture).convert("L"))
    assert pixels.shape == (2 * PHONE["height"], 2 * PHONE["width"])
    assert (np.median(pixels) > 128) == (scheme == "light")
    assert pixels.std() > 10  # something is drawn


def test_choices_are_the_files_that_are_there(site: Path, tmp_path: Path) -> None:
    found = visit(site, tmp_path, messages=[], missing=["/my model/onnx/model_q4.onnx_data"])
    sizes = {dtype: (text, usable) for dtype, text, usable in found["options"]}
    assert set(sizes) == {"fp32", "fp16", "q8", "q4", "q4f16"}
    assert sizes["q4"][0] == "q4 · incomplete"
    assert sizes["q8"][0].endswith(" MB")
    assert "wasm" in found["devices"]
    ((kind, said),) = found["turns"]
    assert kind == "error"
    assert "model_q4.onnx_data is missing on this site" in said


def test_the_page_is_not_written_over_or_beside_nothing(site: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="exists; add --force"):
        write_chat_page(site / "my model")
    with pytest.raises(ArtifactError, match=r"has no config\.json"):
        write_chat_page(tmp_path)
