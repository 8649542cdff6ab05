"""The chat page, used as on a phone: it loads, streams, says how fast, fits the screen, explains what is missing."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from lfm2export.consumers.asked import Asked
from lfm2export.consumers.chat_page import FOLDER, write_chat_page
from lfm2export.consumers.prompts import CARD_MAX_NEW_TOKENS, Prompt
from lfm2export.errors import ArtifactError, OutputError
from page_visit import PHONE, QUESTION, visit_page
from standin import write_standin

pytestmark = pytest.mark.consumer


@pytest.fixture(scope="module")
def site(shipped_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site that holds the artifact under a name with a space, and the page beside it."""
    root = tmp_path_factory.mktemp("site")
    shutil.copytree(shipped_artifact, root / "my model")
    write_chat_page(root / "my model")
    return root


def visit(site: Path, tmp_path: Path, **fields: Any) -> dict[str, Any]:
    given = {"folder": str(site), "page": f"my model/{FOLDER}/", "dtype": "q4", "device": "wasm", **fields}
    return visit_page(tmp_path, **given)


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


def test_the_page_picks_and_says_what_why_and_how_fast(site: Path, tmp_path: Path) -> None:
    """Chromium's WebGPU is emulated here, so a processor's file is the best one."""
    found = visit(site, tmp_path, dtype=None, device=None)
    assert found["picked"] == ["wasm", "q8"] and found["isolated"]
    assert re.fullmatch(r"q8 on the processor \(wasm, \d threads?\): .*\.", found["choice"])
    assert "GPU here is emulated" in found["choice"] or "offers no WebGPU" in found["choice"]
    assert found["turns"][1][0] == "assistant" and found["errors"] == []
    loads = [float(line.split()[0]) for line in found["said"] if " MB of " in line]
    assert loads == sorted(loads) and loads[0] < loads[-1]
    ready = next(line for line in found["said"] if "is ready after" in line)
    threads = re.search(r"q8 on the processor is ready after [\d.]+ s, (\d) threads?$", ready)
    assert threads is not None and int(threads[1]) == min(2, os.cpu_count() or 1)
    assert len([line for line in found["said"] if "tokens/s" in line]) > 2


def test_a_host_without_headers_gets_threads_from_the_service_worker(site: Path, tmp_path: Path) -> None:
    found = visit(site, tmp_path, headers=False, dtype=None, device=None)
    assert found["isolated"] and "One thread" not in found["choice"]
    assert any(f"s, {min(2, os.cpu_count() or 1)} thread" in line for line in found["said"])
    assert found["turns"][1][0] == "assistant" and found["errors"] == [] and found["foreign"] == []
    pages = [path for _, path in found["asked"] if path.endswith("/index.html")]
    assert len(pages) == 2  # the first load, and the one that is isolated


def test_where_the_service_worker_fails_the_page_says_why_it_has_one_thread(site: Path, tmp_path: Path) -> None:
    worker = f"/my model/{FOLDER}/service-worker.js"
    found = visit(site, tmp_path, headers=False, missing=[worker], dtype=None, device=None)
    assert not found["isolated"]
    assert "(wasm, 1 thread)" in found["choice"]
    assert "One thread: the host does not isolate the page, and the service worker failed" in found["choice"]
    assert any("is ready after" in line and line.endswith(", 1 thread") for line in found["said"])
    assert found["turns"][1][0] == "assistant"


def test_an_answer_can_be_stopped(site: Path, tmp_path: Path) -> None:
    """wasm computes without a pause in which a message would be heard."""
    found = visit(site, tmp_path, messages=["Explain the os module of Python in many words."], stop_after=2)
    assert 2 <= int(found["status"].split()[0]) < 20 and found["errors"] == []


def test_an_isolated_page_installs_no_service_worker(site: Path, tmp_path: Path) -> None:
    found = visit(site, tmp_path, load=False, messages=[])
    assert not [path for _, path in found["asked"] if path.endswith("service-worker.js")]


def test_a_visitor_may_choose_and_learns_what_it_costs(site: Path, tmp_path: Path) -> None:
    page = f"my model/{FOLDER}/?device=webgpu&dtype=q8"
    found = visit(site, tmp_path, page=page, dtype=None, device=None, load=False, messages=[])
    if "webgpu" not in found["devices"]:
        pytest.skip("this browser has no WebGPU")
    assert found["picked"] == ["webgpu", "q8"]
    assert "its products run on the processor there; your choice" in found["choice"]
    page = f"my model/{FOLDER}/?device=cuda&dtype=<b>"
    assert visit(site, tmp_path, page=page, dtype=None, device=None, load=False)["picked"] == ["wasm", "q8"]


@pytest.mark.parametrize("name", ["<img src=x onerror=alert(1)>", 7, None])
def test_what_the_page_is_told_of_the_model_is_taken_as_text(site: Path, tmp_path: Path, name: Any) -> None:
    """The data lie on the site; they may be another tool's, or anybody's."""
    other = tmp_path / "site" / "my model"
    shutil.copytree(site / "my model", other)
    told = {"q8": {"bytes": "7", "largest": -1, "cache": {}, "int8": "yes"}, "q4": [], "fp32": None, "x": {}}
    (other / FOLDER / "files.json").write_text(json.dumps({"model": name, "files": told}), encoding="utf-8")
    found = visit(other, tmp_path, page=f"{FOLDER}/", load=False, messages=[])
    assert found["errors"] == [] and {one[0] for one in found["options"]} == {"fp32", "q8", "q4"}
    for text in ("[" * 1000, '{"files": []}', '{"files": "q8"}'):
        (other / FOLDER / "files.json").write_text(text)
        found = visit(other, tmp_path, page=f"{FOLDER}/", load=False, messages=[])
        assert found["errors"] == [] and len(found["options"]) == 5


def test_int8_caches_are_not_offered_to_webgpu(site: Path, tmp_path: Path) -> None:
    other = tmp_path / "site" / "my model"
    shutil.copytree(site / "my model", other)
    path = other / FOLDER / "files.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    for file in data["files"].values():
        file["cache"] = "int8"
    path.write_text(json.dumps(data), encoding="utf-8")
    page = f"{FOLDER}/?device=webgpu"
    found = visit(other, tmp_path, page=page, dtype=None, device=None, load=False, messages=[])
    if "webgpu" not in found["devices"]:
        pytest.skip("this browser has no WebGPU")
    assert not any(usable for _, _, usable in found["options"])
    assert "caches of int8 run on processors only" in found["choice"]


def test_a_start_page_for_what_is_missing_is_no_file(site: Path, tmp_path: Path) -> None:
    missing = [f"/my model/onnx/{name}" for name in ("model.onnx", "model_fp16.onnx", "model_q4.onnx_data")]
    found = visit(site, tmp_path, messages=[], missing=missing, fallback="<!doctype html><p>Welcome</p>")
    sizes = {dtype: text for dtype, text, _ in found["options"]}
    assert set(sizes) == {"q8", "q4", "q4f16"}
    assert sizes["q4"] == "q4 · incomplete"
    nothing = visit(site, tmp_path, missing=["/my model/config.json"], fallback="<!doctype html><p>Welcome</p>")
    ((kind, said),) = nothing["turns"]
    assert (kind, nothing["options"]) == ("error", []) and "config.json is not there" in said


def test_a_start_page_for_a_file_that_need_not_be_is_no_file(site: Path, tmp_path: Path) -> None:
    missing = ["/my model/generation_config.json"]
    found = visit(site, tmp_path, missing=missing, fallback="<!doctype html><p>Welcome</p>")
    assert found["turns"][1][0] == "assistant"
    assert missing[0] in [path for _, path in found["asked"]]


@pytest.mark.parametrize(
    "model",
    [
        "/.//other.host/m",
        "//other.host/m",
        "/..//other.host/m",
        "https://other.host/m",
        "\\\\other.host\\m",
        "/\\other.host/m",
        "/%2f/other.host/m",
        "%2f%2fother.host/m",
        "%252f%252fother.host/m",
        "data:application/json,{}",
        "javascript:alert(1)",
        "..//other.host",
        "/\t/other.host/m",
        "?x",
    ],
)
def test_the_model_is_of_this_site(site: Path, tmp_path: Path, model: str) -> None:
    found = visit(site, tmp_path, page=f"my model/{FOLDER}/?model={quote(model, safe='/%')}")
    ((kind, said),) = found["turns"]
    assert kind == "error" and "is no folder of this site" in said
    assert found["foreign"] == [] and found["options"] == []
    assert not [path for _, path in found["asked"] if "other.host" in path]


@pytest.mark.parametrize("model", ["", "../../my%20model", "/my%20model/", "/my%20model"])
def test_a_model_elsewhere_on_this_site(site: Path, tmp_path: Path, model: str) -> None:
    found = visit(site, tmp_path, page=f"my model/{FOLDER}/?model={model}")
    assert found["turns"][1][0] == "assistant" and found["errors"] == []


def test_a_page_below_two_slashes_stays_on_its_site(site: Path, tmp_path: Path) -> None:
    """Such a path with `..` would be the address of another host."""
    (site / "other.host").mkdir(exist_ok=True)
    if not (site / "other.host" / FOLDER).exists():
        shutil.copytree(site / "my model" / FOLDER, site / "other.host" / FOLDER)
    found = visit(site, tmp_path, page=f"/other.host/{FOLDER}/index.html")
    assert found["foreign"] == []
    assert found["turns"][0][0] == "error" and "/other.host/config.json is not there" in found["turns"][0][1]


def test_the_policy_holds_in_the_page_and_in_its_worker(site: Path, tmp_path: Path) -> None:
    found = visit(site, tmp_path, messages=[], elsewhere="http://127.0.0.1:9/x")
    assert found["refused"] == [True, True, True]
    assert found["foreign"] == []
    assert sum("Content Security Policy" in line for line in found["errors"]) >= 3


def test_a_tokenizers_own_length_is_the_default(site: Path, tmp_path: Path) -> None:
    other = tmp_path / "site" / "my model"
    shutil.copytree(site / "my model", other)
    path = other / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    asked = Asked(other, "q4")
    prompt = len(asked.tokenizer.encode_chat([{"role": "user", "content": QUESTION}]))
    for length, count in ((prompt + 3, 3), (prompt - 1, None)):  # a longer prompt goes up to the model's own length
        path.write_text(json.dumps(config | {"model_max_length": length}), encoding="utf-8")
        found = visit(tmp_path / "site", tmp_path)
        tokens = int(found["status"].split()[0])
        assert tokens == count if count is not None else tokens > 3


def test_the_page_is_not_written_over_or_beside_nothing(site: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="exists; add --force"):
        write_chat_page(site / "my model")
    with pytest.raises(ArtifactError, match=r"has no config\.json"):
        write_chat_page(tmp_path)


def test_force_replaces_a_page_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write_standin(folder)
    page = write_chat_page(folder).folder
    (page / "index.html").write_text("old")
    assert (write_chat_page(folder, force=True).folder / "index.html").read_text(encoding="utf-8") != "old"
    (page / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds what is not of the page"):
        write_chat_page(folder, force=True)
    assert (page / "notes.txt").exists()
    shutil.move(page, tmp_path / "elsewhere")
    page.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="is a link; remove it first"):
        write_chat_page(folder, force=True)
    assert (tmp_path / "elsewhere" / "notes.txt").exists()
