"""The whole `Lfm2ForCausalLM` in fp32, called as transformers' users call it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache, Lfm2ForCausalLM
from transformers.models.lfm2.modeling_lfm2 import Lfm2RotaryEmbedding

from lfm2export.progress import Progress, silent
from lfm2export.reference import torch_side
from lfm2export.reference.run import PIECE, Floats, Recorder, Run, Trace
from lfm2export.reference.torch_side import ReferenceState
from lfm2export.reference.weights import SourceWeights
from lfm2export.steps import Logits, Mask, Tokens


class MemoryReference:
    """transformers' cached path. `spec` as the artifact's; a state is used up by the step that it is given to."""

    mode: Literal["memory"] = "memory"

    def __init__(self, weights: SourceWeights) -> None:
        self.spec = weights.checkpoint.spec
        self.config = torch_side.read_config(weights.checkpoint)
        with torch.device("meta"):
            model = Lfm2ForCausalLM(self.config)
        tensors = {name: torch.from_numpy(weights.whole(name)) for name in self.spec.source_tensors()}
        model.load_state_dict(tensors, strict=not self.spec.tie_word_embeddings, assign=True)
        model.tie_weights()
        model.model.rotary_emb = Lfm2RotaryEmbedding(self.config)
        left = [name for name, value in [*model.named_parameters(), *model.named_buffers()] if value.is_meta]
        if left:
            raise AssertionError(
                f"{left[0]} has no values after loading: transformers has a tensor that the spec lacks"
            )
        self.model: Any = model.eval().requires_grad_(False)

    def new_state(self, batch: int = 1) -> ReferenceState:
        """The state before the first token of `batch` rows of equal length."""
        return torch_side.new_state(self.config, batch)

    def step(
        self, tokens: Tokens, state: ReferenceState, attention_mask: Mask | None = None
    ) -> tuple[Logits, ReferenceState]:
        """Feed `tokens` [B, S]; returns the next-token logits [B, 1, V] and the next state.

        Raises:
            StepError: a step that the artifact would refuse, or padding.
        """
        ids, mask = torch_side.checked_step(self.spec, tokens, state, attention_mask)
        for piece in ids.split(PIECE, dim=1):
            output = self.model(piece, cache=state.cache, use_cache=True, logits_to_keep=1)
        return output.logits.numpy(), ReferenceState(mask, state.cache)

    def read_caches(self, state: ReferenceState) -> tuple[NDArray[Any], ...]:
        """Copies of every cache tensor in contract order: conv [B, H, L], key and value [B, K, P, D]."""
        return torch_side.read_caches(self.spec, state)

    def run(self, runs: Sequence[Run], progress: Progress = silent) -> list[Trace]:
        """Every run by itself, step by step on its own cache."""
        traces = []
        total = sum(len(run.tokens) for run in runs)
        done = 0
        for run in runs:
            with _Passes(self) as passes:
                for start, stop in run.pieces():
                    passes.feed(run.tokens[start:stop])
                    done += stop - start
                    progress("reference", done, total, "tokens")
                traces.append(passes.trace(run))
        return traces

    def write(self, prompt: Sequence[int], count: int) -> Trace:
        """The greedy answer of `count` tokens, as `model.generate` writes it, and what it leaves behind.

        The trace's run is prompt and answer, its caches are kept from the end of the prompt on.
        """
        answer: list[int] = []
        with _Passes(self) as passes:
            hidden = passes.feed(prompt)
            for _ in range(count):
                answer.append(int(self.logits(hidden[-1:]).argmax()))
                hidden = passes.feed(answer[-1:])
            return passes.trace(Run.cached(prompt, answer, caches_from=len(prompt)))

    def logits(self, hidden: Floats) -> Logits:
        """The head on rows `hidden` [n, H] of a trace: [n, V]."""
        logits: Logits = self.model.lm_head(torch.from_numpy(hidden)).numpy()
        return logits


class _Passes:
    """Forward passes of one sequence on one cache, and what they leave behind."""

    def __init__(self, reference: MemoryReference) -> None:
        self.reference, self.spec = reference, reference.spec
        self.cache: Any = DynamicCache(config=reference.config)
        self.hidden: list[Floats] = []

    def __enter__(self) -> _Passes:
        with ExitStack() as hooks:
            layers = self.reference.model.model.layers
            self.products = {
                layer: hooks.enter_context(torch_side.recorded_products(layers[layer].conv))
                for layer in self.spec.conv_layers
            }
            self.hooks = hooks.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self.hooks.close()

    def feed(self, tokens: Sequence[int]) -> Floats:
        """The last layer's output [S, H] after the final norm, for `tokens` [S]."""
        ids = torch.tensor([tokens])
        for piece in ids.split(PIECE, dim=1):
            output = self.reference.model.model(piece, cache=self.cache, use_cache=True)
            self.hidden.append(output.last_hidden_state[0].numpy())
        return self.hidden[-1]

    def trace(self, run: Run) -> Trace:
        """Of all that was fed, which is what `run` says."""
        recorder = Recorder(self.spec, run)
        for layer, found in self.products.items():
            recorder.conv(layer, found)
        for layer in self.spec.attention_layers:
            held = self.cache.layers[layer]
            recorder.attention(layer, held.keys.numpy(), held.values.numpy())
        return recorder.trace(np.concatenate(self.hidden))
