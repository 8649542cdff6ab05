"""Runs in the llama environment: logits of a GGUF file for token ids that come on stdin, one JSON object a line.

    {"tokens": [...], "first": n}  ->  the byte count on a line, then float32 [len(tokens) - 1 - first, V]

Those are the logits at positions first .. len(tokens) - 2, each of which predicts the next token.

Arguments: GGUF, prefill|decode, threads, f32|f16 (type of keys and values).
"""

from __future__ import annotations

import json
import sys

import llama_cpp
import numpy as np


def main() -> None:
    path, route, threads, cache = sys.argv[1:]
    model = None
    for line in sys.stdin:
        asked = json.loads(line)
        tokens, first = asked["tokens"], asked["first"]
        if model is None or model.n_ctx() < len(tokens):
            model = _open(path, len(tokens), int(threads), cache)
        model.reset()
        model._ctx.kv_cache_clear()
        head = tokens[:-1] if route == "prefill" else tokens[: first + 1]
        model.eval(head)
        for token in tokens[len(head) : -1]:
            model.eval([token])
        rows = np.ascontiguousarray(model.scores[first : len(tokens) - 1], np.float32)
        sys.stdout.buffer.write(f"{rows.nbytes}\n".encode() + rows.tobytes())
        sys.stdout.buffer.flush()


def _open(path: str, length: int, threads: int, cache: str) -> llama_cpp.Llama:
    kind = llama_cpp.GGML_TYPE_F32 if cache == "f32" else llama_cpp.GGML_TYPE_F16
    return llama_cpp.Llama(
        path,
        n_ctx=length,
        n_batch=length,
        n_ubatch=length,
        n_threads=threads,
        n_threads_batch=threads,
        logits_all=True,
        type_k=kind,
        type_v=kind,
        verbose=False,
    )


if __name__ == "__main__":
    main()
