"""One model file under the clock: load it, then prompt and decode at a context length, with memory watched.

Tokens are random: the time of a step does not depend on which they are.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from lfm2export.bench.memory import AnonymousPeak, anonymous_bytes, peak_resident_bytes, resident_bytes
from lfm2export.bench.results import Loaded, Run
from lfm2export.generation.loop import Generated, Stop, generate
from lfm2export.runtime import BufferedModel, BufferedState, CopyState, OnnxModel, fastest


class Engine:
    """A model file in the fastest loop that it allows.

    Raises:
        ArtifactError, ConfigError, SourceError: as :class:`lfm2export.runtime.OnnxModel`.
    """

    def __init__(self, folder: Path, dtype: str | None, threads: int) -> None:
        base = resident_bytes()
        begin = time.perf_counter()
        self.model = OnnxModel(folder, dtype, threads=threads)
        seconds = time.perf_counter() - begin
        self.loaded = Loaded(seconds, base, resident_bytes(), anonymous_bytes())
        self.buffered = isinstance(fastest(self.model), BufferedModel)
        self._random = np.random.default_rng(0)
        self._peak_anonymous = self.loaded.loaded_anonymous

    def run(self, context: int, decoded: int) -> Run:
        """Prompt with `context` tokens, then decode `decoded` more greedily after the one that the prompt gives.

        Raises:
            StepError: more tokens than the context length of the model, or the runtime fails.
        """
        prompt = self._random.integers(0, self.model.spec.vocab_size, context).tolist()
        with AnonymousPeak() as anonymous:
            generated = self._generate(prompt, decoded + 1)
        if anonymous.bytes is not None:
            self._peak_anonymous = max(self._peak_anonymous or 0, anonymous.bytes)
        prefill, decode = generated.prefill_seconds, generated.decode_seconds
        if generated.stop is Stop.INTERRUPTED or prefill is None or decode is None:
            raise KeyboardInterrupt
        return Run(context, decoded, prefill, decode, peak_resident_bytes(), self._peak_anonymous)

    def _generate(self, prompt: list[int], count: int) -> Generated[BufferedState] | Generated[CopyState]:
        if self.buffered:
            return generate(BufferedModel(self.model, len(prompt) + count), prompt, max_new_tokens=count)
        return generate(self.model, prompt, max_new_tokens=count)
