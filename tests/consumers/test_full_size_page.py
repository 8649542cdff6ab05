"""The chat page with a model of 350M, as a visitor without a GPU meets it: from `serve`, and from a plain host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lfm2export.consumers.chat_page import FOLDER, write_chat_page
from lfm2export.synth import write_synth
from page_visit import visit_page

pytestmark = [pytest.mark.large, pytest.mark.consumer]

COMMAND = (sys.executable, "-P", "-m", "lfm2export")
THREADS = min(2, os.cpu_count() or 1)
TOKENS = 16


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """q8 of random weights in the shape of 350M, with its page."""
    place = tmp_path_factory.mktemp("page")
    source = write_synth("350M", place / "synth")
    build = ["build", str(source), "--dtype", "q8", "-o", str(place / "out"), "--no-verify", "--quiet"]
    subprocess.run([*COMMAND, *build], check=True)
    write_chat_page(place / "out")
    return place / "out"


@pytest.fixture
def origin(artifact: Path) -> Iterator[str]:
    """Where `serve` answers."""
    command = [*COMMAND, "serve", str(artifact), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split(f"/{FOLDER}/")[0]
        process.terminate()
        assert process.wait(60) == 143


def check(found: dict[str, Any], artifact: Path) -> None:
    """It loaded the file for processors on two threads, told how far it was, and streamed until it was stopped."""
    assert found["isolated"] and found["errors"] == [] and found["foreign"] == []
    assert found["picked"] == ["wasm", "q8"]
    assert re.match(rf"q8 on the processor \(wasm, {THREADS} threads?\): ", found["choice"])
    size = sum(path.stat().st_size for path in (artifact / "onnx").iterdir()) / 1e6
    loads = [float(line.split()[0]) for line in found["said"] if re.match(rf"[\d.]+ MB of {size:.1f} MB", line)]
    assert len(loads) > 10 and loads == sorted(loads)
    assert any(re.search(rf"is ready after [\d.]+ s, {THREADS} thread", line) for line in found["said"])
    speeds = [
        line for line in found["said"] if re.fullmatch(r"\d+ tokens · [\d.]+ tokens/s · first after [\d.]+ s", line)
    ]
    assert len(speeds) >= TOKENS - 2
    assert TOKENS <= int(found["status"].split()[0]) < 5 * TOKENS
    assert found["turns"][1][0] == "assistant"


def test_served_with_the_headers(origin: str, artifact: Path, tmp_path: Path) -> None:
    page = f"?threads={THREADS}"
    check(visit_page(tmp_path, origin=origin, page=page, stop_after=TOKENS, timeout_ms=300_000), artifact)


def test_on_a_host_without_the_headers(artifact: Path, tmp_path: Path) -> None:
    page = f"{FOLDER}/?threads={THREADS}"
    found = visit_page(tmp_path, folder=str(artifact), headers=False, page=page, stop_after=TOKENS, timeout_ms=300_000)
    check(found, artifact)
    assert [path for _, path in found["asked"] if path.endswith("/service-worker.js")]
