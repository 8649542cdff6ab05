"""llama.cpp's files from a checkpoint: GGUF in floats by `gguf`, quantized by llama.cpp itself."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Literal

from benchmarks.peers.locate import ROOT, PeerError, environment, python_of

Float = Literal["F32", "F16", "BF16"]
Quantized = Literal["Q4_K_M", "Q4_0"]
WORKER = "benchmarks.peers.gguf_worker"


def write_gguf(source: Path, out: Path, kind: Float = "BF16") -> Path:
    """`source`, a checkpoint folder, as one GGUF file. BF16 loses nothing of a bfloat16 checkpoint.

    Raises:
        PeerError: llama.cpp is not installed, or its tools failed.
    """
    return _made(["write", str(source), str(out), kind], out)


def quantize_gguf(source: Path, out: Path, kind: Quantized, threads: int | None = None) -> Path:
    """`source`, a GGUF file in floats, quantized without an importance matrix.

    Raises:
        PeerError: as for :func:`write_gguf`.
    """
    return _made(["quantize", str(source), str(out), kind, str(threads or os.cpu_count() or 1)], out)


def _made(arguments: list[str], out: Path) -> Path:
    command = [str(python_of("llama")), "-m", WORKER, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment())
    if done.returncode or not out.is_file():
        raise PeerError(f"{' '.join(command)} exited with {done.returncode}: {done.stderr[-2000:]}")
    return out
