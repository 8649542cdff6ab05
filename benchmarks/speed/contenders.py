"""What is compared: how each contender's files are made, and how its worker is asked."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.peers import genai
from benchmarks.peers.gguf import Quantized, quantize_gguf, write_gguf
from benchmarks.peers.locate import python_of
from lfm2export.pipeline import build
from lfm2export.recipes import Options

Kind = Literal["ours", "genai", "llama", "node", "wasm"]

#: Kinds that run files of ours in Transformers.js -> runtime and device of `lfm2-export bench`.
JAVASCRIPT: Mapping[Kind, tuple[str, str]] = {"node": ("node", "cpu"), "wasm": ("browser", "wasm")}


@dataclass(frozen=True)
class Contender:
    """One artifact of the checkpoint in one runtime; `label` is for tables.

    make: writes it from the checkpoint. artifact: name of its file or folder, which contenders may share; default
    `name`. dtype: of ours, the file that is measured.
    """

    name: str
    kind: Kind
    label: str
    make: Callable[[Path, Path], object]
    artifact: str | None = None
    dtype: str = "q4"

    @property
    def place(self) -> str:
        return self.artifact or self.name


def _ours(options: Options, dtype: str = "q4") -> Callable[[Path, Path], object]:
    return lambda source, out: build(str(source), dtypes=(dtype,), options=options, out=out)


def _genai(recipe: genai.Recipe) -> Callable[[Path, Path], object]:
    return lambda source, out: genai.build(source, out, recipe)


def _llama(kind: Quantized) -> Callable[[Path, Path], object]:
    def make(source: Path, out: Path) -> None:
        floats = write_gguf(source, out.with_suffix(".bf16"))
        quantize_gguf(floats, out, kind)
        floats.unlink()

    return make


CONTENDERS = (
    Contender("ours", "ours", "lfm2export q4", _ours(Options())),
    Contender("ours-128", "ours", "lfm2export q4, --block-size 128", _ours(Options(block_size=128))),
    Contender("ours-256", "ours", "lfm2export q4, --block-size 256", _ours(Options(block_size=256))),
    Contender(
        "ours-fast",
        "ours",
        "lfm2export q4, --block-size 256 --table-bits 4",
        _ours(Options(block_size=256, table_bits=4)),
    ),
    Contender("ours-q8", "ours", "lfm2export q8", _ours(Options(), "q8"), dtype="q8"),
    Contender("ours-q8-blocks", "ours", "lfm2export q8, --q8 blocks", _ours(Options(q8="blocks"), "q8"), dtype="q8"),
    Contender("node-q4", "node", "q4 in Node (Transformers.js)", _ours(Options()), "ours"),
    Contender("node-q8", "node", "q8 in Node (Transformers.js)", _ours(Options(), "q8"), "ours-q8", "q8"),
    Contender("wasm-q4", "wasm", "q4 in Chromium, wasm (Transformers.js)", _ours(Options()), "ours"),
    Contender("wasm-q8", "wasm", "q8 in Chromium, wasm (Transformers.js)", _ours(Options(), "q8"), "ours-q8", "q8"),
    Contender("genai-rtn", "genai", "onnxruntime-genai builder, plain rounding", _genai("rtn")),
    Contender("genai-vendor", "genai", "onnxruntime-genai builder, k_quant and int8 mix", _genai("vendor")),
    Contender("genai-mixed", "genai", "onnxruntime-genai builder, plain rounding and int8 mix", _genai("mixed")),
    Contender("llama-Q4_K_M", "llama", "llama.cpp Q4_K_M", _llama("Q4_K_M")),
    Contender("llama-Q4_0", "llama", "llama.cpp Q4_0", _llama("Q4_0")),
)


def by_name(name: str) -> Contender:
    """Raises KeyError for a name that is none of :data:`CONTENDERS`."""
    return {contender.name: contender for contender in CONTENDERS}[name]


def files(contender: Contender, path: Path) -> list[Path]:
    """The model's files at `path`: graph and weights, no tokenizers."""
    if contender.kind == "llama":
        return [path]
    folder = path if contender.kind == "genai" else path / "onnx"
    return sorted(folder.glob("*.onnx*"))


def command(contender: Contender, path: Path, request: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """(program, request) of the worker that measures `path`; `request` has threads, contexts, decoded."""
    asked = dict(request)
    if contender.kind == "ours":
        program = [sys.executable, "-m", "lfm2export.bench.worker"]
        asked |= {"folder": str(path), "dtype": contender.dtype, "repeats": 1}
    elif contender.kind in JAVASCRIPT:
        program = [sys.executable, "-m", "benchmarks.speed.javascript_worker"]
        runtime, device = JAVASCRIPT[contender.kind]
        asked |= {"folder": str(path), "dtype": contender.dtype, "repeats": 1, "runtime": runtime, "device": device}
    elif contender.kind == "genai":
        program = [str(python_of("genai")), "-m", "benchmarks.speed.genai_worker"]
        asked |= {"folder": str(path), "share_buffer": True}
    else:
        program = [str(python_of("llama")), "-m", "benchmarks.speed.llama_worker"]
        asked |= {"file": str(path), "flash_attention": -1}
    return program, asked
