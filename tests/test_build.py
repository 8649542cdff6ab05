"""`build` as a user runs it: what it leaves behind, byte for byte, and what it refuses."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from lfm2export.cli import main
from lfm2export.inspection import inspect_artifact
from lfm2export.pipeline import build
from tiny import tiny_config, write_tiny


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def run(*arguments: object) -> Result:
    """The command line; builds are verified in tests/verify."""
    extra = ["--no-verify"] if arguments[0] == "build" else []
    return CliRunner().invoke(main, [*(str(argument) for argument in arguments), *extra])


def test_two_builds_are_identical_whatever_the_thread_count(tiny_source: Path, tmp_path: Path) -> None:
    first = build(str(tiny_source), dtypes=["fp16", "q4"], out=tmp_path / "a" / "same", threads=1).folder
    second = build(str(tiny_source), dtypes=["q4", "fp16"], out=tmp_path / "b" / "same", threads=3).folder
    assert digests(first) == digests(second)


def test_the_folder_is_complete_and_its_hashes_hold(shipped_artifact: Path) -> None:
    assert {path.name for path in shipped_artifact.iterdir()} >= {
        "LICENSE",
        "README.md",
        "build.json",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "genai_config.json",
        "onnx",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    found = inspect_artifact(shipped_artifact)
    assert found.good
    assert not found.hashes
    result = run("inspect", shipped_artifact)
    assert result.exit_code == 0
    assert "contract" in result.output


def test_inspect_finds_a_changed_byte(tiny_source: Path, tmp_path: Path) -> None:
    out = build(str(tiny_source), dtypes=["q4"], out=tmp_path / "out").folder
    with (out / "onnx" / "model_q4.onnx_data").open("r+b") as file:
        file.seek(100)
        byte = file.read(1)
        file.seek(100)
        file.write(bytes([byte[0] ^ 1]))
    result = run("inspect", out)
    assert result.exit_code == 1
    assert "model_q4.onnx_data" in result.output


def test_the_shipped_model_is_named_when_no_source_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("build", "--quiet")
    assert result.exit_code == 0, result.output
    assert "ships with this package" in result.output
    [made] = tmp_path.iterdir()
    assert made.name.endswith("-ONNX")
    assert [path.name for path in sorted((made / "onnx").iterdir())] == ["model_q4.onnx", "model_q4.onnx_data"]


def test_values_beyond_float16_are_reported(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "source", dtype="F32")
    change(source, "model.layers.0.ffn_norm.weight", lambda array: array * 0 + 1e6)
    result = run("build", source, "--dtype", "fp16", "-o", tmp_path / "out", "--quiet")
    assert result.exit_code == 0, result.output
    assert "64 values of model.layers.0.ffn_norm.weight do not fit float16" in result.output
    manifest = json.loads((tmp_path / "out" / "build.json").read_text())
    assert "model.layers.0.ffn_norm.weight" in json.dumps(manifest["models"])


def test_every_option_of_build_gives_a_file_that_loads(tiny_source: Path, tmp_path: Path) -> None:
    from lfm2export.runtime import OnnxModel

    for number, options in enumerate(
        (
            ["--table-bits", "4"],
            ["--table-bits", "4", "--symmetric", "--lookup", "gather_block_quantized"],
            ["--block-size", "16", "--quantizer", "round"],
            ["--block-size", "64", "--logits", "all"],
            ["--profile", "cpu", "--lookup", "gather_block_quantized"],
        )
    ):
        out = tmp_path / str(number)
        result = run("build", tiny_source, "-o", out, "--quiet", *options)
        assert result.exit_code == 0, result.output
        model = OnnxModel(out, "q4")
        logits, _ = model.step(np.array([[20, 21, 22]]), model.new_state(1))
        assert np.isfinite(logits).all()
        assert logits.std() > 0


def change(folder: Path, name: str, edit: Callable[[np.ndarray], np.ndarray]) -> None:
    """Rewrite one tensor of a float32 checkpoint."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors[name] = edit(tensors[name]).astype(np.float32)
    save_file(tensors, folder / "model.safetensors")


def edit_config(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps(tiny_config(**changes)))


#: What a user may hand over, and what the one line about it must say.
BAD_SOURCES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing folder": (shutil.rmtree, "does not exist"),
    "no config.json": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "another architecture": (lambda folder: edit_config(folder, model_type="llama"), "'llama'"),
    "contradictory config": (lambda folder: edit_config(folder, num_hidden_layers=5), "contradicts itself"),
    "other width": (lambda folder: edit_config(folder, intermediate_size=256), "feed_forward"),
    "truncated weights": (lambda folder: truncate(folder / "model.safetensors"), "model.safetensors"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "safetensors"),
    "pickle only": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "pytorch_model",
    ),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
    "not a number": (
        lambda folder: change(folder, "model.layers.1.self_attn.q_proj.weight", lambda a: a * np.nan),
        "model.layers.1.self_attn.q_proj.weight",
    ),
    "missing tensor": (
        lambda folder: drop(folder, "model.layers.2.conv.in_proj.weight"),
        "model.layers.2.conv.in_proj",
    ),
}


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def drop(folder: Path, name: str) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_bad_sources_get_one_line_and_leave_nothing(tmp_path: Path, name: str) -> None:
    spoil, expected = BAD_SOURCES[name]
    source = write_tiny(tmp_path / "source", dtype="F32")
    spoil(source)
    before = listing(tmp_path)
    result = run("build", source, "-o", tmp_path / "new" / "out", "--quiet")
    assert result.exit_code == 2
    [line] = result.output.strip().splitlines()
    assert line.startswith("Error: ")
    assert expected in line
    assert listing(tmp_path) == before


def test_bad_outputs_get_one_line_and_nothing_is_overwritten(tiny_source: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "precious.txt").write_text("mine")
    for out, expected in ((taken, "exists"), (tiny_source / "out", "inside"), (taken / "precious.txt" / "out", "file")):
        result = run("build", tiny_source, "-o", out, "--quiet")
        assert result.exit_code == 2
        assert len(result.output.strip().splitlines()) == 1
        assert expected in result.output
    forced = run("build", tiny_source, "-o", taken, "--force", "--quiet")
    assert forced.exit_code == 2
    assert (taken / "precious.txt").read_text() == "mine"
    assert listing(tmp_path) == ["taken", "taken/precious.txt"]


def test_force_replaces_an_artifact(tiny_source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("build", tiny_source, "-o", out, "--dtype", "fp32", "--quiet").exit_code == 0
    assert run("build", tiny_source, "-o", out, "--quiet").exit_code == 2
    assert (out / "onnx" / "model.onnx").exists()
    assert run("build", tiny_source, "-o", out, "--quiet", "--force").exit_code == 0
    assert [path.name for path in sorted((out / "onnx").iterdir())] == ["model_q4.onnx", "model_q4.onnx_data"]
    assert listing(tmp_path)[0] == "out"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_killed_build_leaves_no_output_and_the_next_one_cleans_up(tiny_source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-P", "-m", "lfm2export", "build", str(tiny_source), "-o", str(out), "--no-verify"]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not any(tmp_path.iterdir()):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    assert any(tmp_path.iterdir()), "the kill came before the staging folder was made"
    assert run("build", tiny_source, "-o", out, "--quiet").exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_help_is_quick_and_a_bad_path_is_refused_before_torch_is_imported() -> None:
    for arguments, limit in ((["--help"], 0.3), (["build", "./no-such-folder"], 1.0)):
        times = []  # of the processor: other work beside does not count
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run(
                [sys.executable, "-P", "-m", "lfm2export", *arguments], capture_output=True, text=True
            )
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == (0 if arguments == ["--help"] else 2)
        assert min(times) < limit
    code = "import sys; from lfm2export.cli import main; import lfm2export.runtime, lfm2export.pipeline; "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
