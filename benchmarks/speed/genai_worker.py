"""Runs in the genai environment: speed of the builder's artifact in onnxruntime-genai's own generator.

Request and answers are those of `lfm2export.bench.worker`. The request's own: folder; share_buffer: one buffer as past
and present, the library's option past_present_share_buffer.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnxruntime_genai as genai  # type: ignore[import-not-found]

from lfm2export.bench.memory import AnonymousPeak, anonymous_bytes, peak_resident_bytes, resident_bytes
from lfm2export.bench.results import Loaded, Run

WARM_UP = (8, 2)


class Engine:
    """An artifact opened with everything as its genai_config.json says but the number of threads."""

    def __init__(self, folder: str, threads: int, share_buffer: bool) -> None:
        base = resident_bytes()
        begin = time.perf_counter()
        config = genai.Config(folder)
        options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self.model = genai.Model(config)
        self.loaded = Loaded(time.perf_counter() - begin, base, resident_bytes(), anonymous_bytes())
        stated = json.loads((Path(folder) / "genai_config.json").read_text(encoding="utf-8"))
        self.vocabulary = stated["model"]["vocab_size"]
        self.share_buffer = share_buffer
        self.random = np.random.default_rng(0)
        self.peak_anonymous = 0
        self.run(*WARM_UP)

    def run(self, context: int, decoded: int) -> Run:
        parameters = genai.GeneratorParams(self.model)
        length = context + decoded + 1
        parameters.set_search_options(
            max_length=length,
            min_length=length,  # random weights may choose the end of the text
            do_sample=False,
            repetition_penalty=1.0,
            past_present_share_buffer=self.share_buffer,
        )
        prompt = self.random.integers(0, self.vocabulary, context).astype(np.int32)
        generator = genai.Generator(self.model, parameters)
        with AnonymousPeak() as anonymous:
            begin = time.perf_counter()
            generator.append_tokens(prompt)
            generator.generate_next_token()
            first = time.perf_counter()
            for _ in range(decoded):
                generator.generate_next_token()
            end = time.perf_counter()
        self.peak_anonymous = max(self.peak_anonymous, anonymous.bytes or 0)
        peak = self.peak_anonymous if anonymous.bytes is not None else None
        return Run(context, decoded, first - begin, end - first, peak_resident_bytes(), peak)


def main() -> None:
    request = json.loads(sys.argv[1])
    engine = Engine(request["folder"], request["threads"], request["share_buffer"])
    runs = [asdict(engine.run(context, request["decoded"])) for context in request["contexts"]]
    print(json.dumps({"loaded": asdict(engine.loaded), "runs": runs}))


if __name__ == "__main__":
    main()
