"""Logits of llama.cpp for token ids: a process of its own environment that answers chunk by chunk."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np

from benchmarks.peers.locate import ROOT, PeerError, environment, python_of
from lfm2export.steps import Logits
from lfm2export.verify.expected import ExpectedChunk

Route = Literal["prefill", "decode"]
CacheType = Literal["f32", "f16"]
WORKER = "benchmarks.peers.llama_worker"


class LlamaScore:
    """A GGUF file behind `verify.text.Score`: logits [n, V] of a chunk at the positions that are scored.

    route: the chunk at once, or its first half at once and the rest token by token. cache: the type of keys and values;
    llama.cpp's own default is f16, and transformers' in the reference is float32.

        with LlamaScore(path, "prefill") as score:
            measure_text(score, expected, "prefill")
    """

    def __init__(self, gguf: Path, route: Route, *, threads: int = 2, cache: CacheType = "f16") -> None:
        command = [str(python_of("llama")), "-m", WORKER, str(gguf), route, str(threads), cache]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=environment()
        )

    def __call__(self, chunk: ExpectedChunk) -> Logits:
        """Raises PeerError when the process ended."""
        return self.logits(chunk.tokens, chunk.first)

    def logits(self, tokens: tuple[int, ...], first: int) -> Logits:
        """float32 [len(tokens) - 1 - first, V]: positions first .. len(tokens) - 2."""
        assert self.process.stdin is not None and self.process.stdout is not None
        asked = json.dumps({"tokens": [int(token) for token in tokens], "first": first})
        try:
            self.process.stdin.write(asked.encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # what follows says so
        size = self.process.stdout.readline()
        if not size:
            raise PeerError(f"llama.cpp ended with {self.process.wait()} on {len(tokens)} tokens; its reason is above")
        values = np.frombuffer(self.process.stdout.read(int(size)), np.float32)
        return values.reshape(len(tokens) - 1 - first, -1)

    def __enter__(self) -> LlamaScore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
