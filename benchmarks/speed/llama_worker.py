"""Runs in the llama environment: speed of a GGUF file. Request and answers are those of `lfm2export.bench.worker`.

The request's own: file. flash_attention: -1 lets llama.cpp decide, which is its default. Everything else is at
llama.cpp's defaults too: the file is mapped, n_ubatch is 512, keys and values are float16. Only the last token of a
prompt asks for logits.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import llama_cpp as llama
import numpy as np

from lfm2export.bench.memory import AnonymousPeak, anonymous_bytes, peak_resident_bytes, resident_bytes
from lfm2export.bench.results import Loaded, Run

#: Tokens of a logical batch: llama.cpp's default.
BATCH = 2048
WARM_UP = (8, 2)


@llama.llama_log_callback  # type: ignore[untyped-decorator]
def _unheard(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """llama.cpp's log, which would fill the terminal."""


class Engine:
    """A GGUF file opened with everything at its default but threads and flash attention."""

    def __init__(self, path: str, threads: int, flash_attention: int) -> None:
        llama.llama_log_set(_unheard, ctypes.c_void_p(0))
        llama.llama_backend_init()
        base = resident_bytes()
        begin = time.perf_counter()
        self.model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
        if not self.model:
            sys.exit(f"llama.cpp does not load {path}")
        self.loaded = Loaded(time.perf_counter() - begin, base, resident_bytes(), anonymous_bytes())
        self.vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self.threads, self.flash_attention = threads, flash_attention
        self.random = np.random.default_rng(0)
        self.peak_anonymous = 0
        self.run(*WARM_UP)

    def run(self, context: int, decoded: int) -> Run:
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = context + decoded + 1
        parameters.n_batch = BATCH
        parameters.n_threads = parameters.n_threads_batch = self.threads
        parameters.flash_attn_type = self.flash_attention
        session = llama.llama_init_from_model(self.model, parameters)
        batch = llama.llama_batch_init(BATCH, 0, 1)
        prompt = self.random.integers(0, self.vocabulary, context).tolist()
        with AnonymousPeak() as anonymous:
            begin = time.perf_counter()
            for start in range(0, context, BATCH):
                part = prompt[start : start + BATCH]
                self._decode(session, batch, part, start, last=start + BATCH >= context)
            token = self._likeliest(session)
            first = time.perf_counter()
            for step in range(decoded):
                self._decode(session, batch, [token], context + step, last=True)
                token = self._likeliest(session)
            end = time.perf_counter()
        llama.llama_batch_free(batch)
        llama.llama_free(session)
        self.peak_anonymous = max(self.peak_anonymous, anonymous.bytes or 0)
        peak = self.peak_anonymous if anonymous.bytes is not None else None
        return Run(context, decoded, first - begin, end - first, peak_resident_bytes(), peak)

    def _decode(self, session: Any, batch: Any, tokens: Sequence[int], start: int, *, last: bool) -> None:
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index], batch.pos[index], batch.logits[index] = token, start + index, 0
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
        batch.logits[len(tokens) - 1] = int(last)
        if code := llama.llama_decode(session, batch):
            sys.exit(f"llama_decode of {len(tokens)} tokens at {start} returned {code}")

    def _likeliest(self, session: Any) -> int:
        row = llama.llama_get_logits_ith(session, -1)
        return int(np.ctypeslib.as_array(row, (self.vocabulary,)).argmax())


def main() -> None:
    request = json.loads(sys.argv[1])
    engine = Engine(request["file"], request["threads"], request["flash_attention"])
    runs = [asdict(engine.run(context, request["decoded"])) for context in request["contexts"]]
    print(json.dumps({"loaded": asdict(engine.loaded), "runs": runs}))


if __name__ == "__main__":
    main()
