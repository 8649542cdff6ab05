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

Kind = Literal["ours", "genai", "llama"]


@dataclass(frozen=True)
class Contender:
    """One artifact of the checkpoint: `name` is also that of its file or folder; `label` is for tables.

    make: writes it from the checkpoint.
    """

    name: str
    kind: Kind
    label: str
    make: Callable[[Path, Path], object]


def _ours(options: Options) -> Callable[[Path, Path], object]:
    return lambda source, out: build(str(source), dtypes=("q4",), options=options, out=out)


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
    folder = path / "onnx" if contender.kind == "ours" else path
    return sorted(folder.glob("*.onnx*"))


def command(contender: Contender, path: Path, request: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """(program, request) of the worker that measures `path`; `request` has threads, contexts, decoded."""
    asked = dict(request)
    if contender.kind == "ours":
        program = [sys.executable, "-m", "lfm2export.bench.worker"]
        asked |= {"folder": str(path), "dtype": "q4", "repeats": 1}
    elif contender.kind == "genai":
        program = [str(python_of("genai")), "-m", "benchmarks.speed.genai_worker"]
        asked |= {"folder": str(path), "share_buffer": True}
    else:
        program = [str(python_of("llama")), "-m", "benchmarks.speed.llama_worker"]
        asked |= {"file": str(path), "flash_attention": -1}
    return program, asked
