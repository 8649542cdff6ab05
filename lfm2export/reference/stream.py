"""The reference of a model that does not fit: transformers' own layers, one in memory at a time.

A pass over the model takes every step of every run through layer 0, then through layer 1, and so on. The modules and
their cached path are transformers' own, called in the same order per sequence; what is ours is the loop around them.
Peak memory is one layer and the next one (read while the former computes), a part of the table, and the runs' own rows:
1.1 GB for 2.6B. A token by itself goes through a layer at the speed of memory, so runs of single steps take several
times as long as the same tokens at once (`Run.prefill`), which give the same within fp32 rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache
from transformers.models.lfm2.modeling_lfm2 import Lfm2DecoderLayer, Lfm2RMSNorm, Lfm2RotaryEmbedding

from lfm2export.checkpoint import EMBEDDING, HEAD
from lfm2export.progress import Progress, silent
from lfm2export.reference import torch_side
from lfm2export.reference.run import FAINT, PIECE, Floats, Recorder, Run, Trace
from lfm2export.reference.torch_side import ReferenceState
from lfm2export.reference.weights import SourceWeights
from lfm2export.spec import CONV
from lfm2export.steps import Logits, Mask, Tokens

#: Rows of the table that are in memory at once: 67 MB at hidden size 2048.
TABLE_ROWS = 8192

FINAL_NORM = "model.embedding_norm.weight"


class StreamReference:
    """transformers' layers behind the same interface as the model in memory. A step is a pass over the whole file."""

    mode: Literal["stream"] = "stream"

    def __init__(self, weights: SourceWeights) -> None:
        self.weights = weights
        self.spec = weights.checkpoint.spec
        self.config = torch_side.read_config(weights.checkpoint)
        self.rotary = Lfm2RotaryEmbedding(self.config)

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
        hidden, past = self.embed(ids), state.mask.shape[1]
        cuts = [(start, min(start + PIECE, ids.shape[1])) for start in range(0, ids.shape[1], PIECE)]
        for module in self.layers():
            hidden = self._forward(module, hidden, cuts, state.cache, past)
        normed = self.norm()(hidden[:, -1]).numpy()
        return self.logits(normed)[:, None], ReferenceState(mask, state.cache)

    def read_caches(self, state: ReferenceState) -> tuple[NDArray[Any], ...]:
        """Copies of every cache tensor in contract order: conv [B, H, L], key and value [B, K, P, D]."""
        return torch_side.read_caches(self.spec, state)

    def run(self, runs: Sequence[Run], progress: Progress = silent, *, faint: Sequence[Run] = ()) -> list[Trace]:
        """Every step of every run in one pass over the layers; behind them those with a faint residual stream."""
        every = [*runs, *faint]
        hidden = [self.embed(torch.tensor([run.tokens])) for run in every]
        hidden[len(runs) :] = [rows * FAINT for rows in hidden[len(runs) :]]
        recorders = [Recorder(self.spec, run) for run in every]
        for layer, module in enumerate(self.layers()):
            for index, recorder in enumerate(recorders):
                with torch_side.faint(module) if index >= len(runs) else nullcontext():
                    hidden[index] = self.recorded(layer, module, hidden[index], recorder)
            progress("reference", layer + 1, self.spec.num_hidden_layers, "layers")
        norm = self.norm()
        return [recorder.trace(norm(rows[0]).numpy()) for recorder, rows in zip(recorders, hidden, strict=True)]

    def recorded(self, layer: int, module: Any, hidden: torch.Tensor, recorder: Recorder) -> torch.Tensor:
        """One run through one layer; what it leaves goes to `recorder`."""
        cache = DynamicCache(config=self.config)  # of which this layer alone is ever used
        cuts = recorder.run.pieces()
        if self.spec.layer_types[layer] == CONV:
            with torch_side.recorded_products(module.conv) as products:
                hidden = self._forward(module, hidden, cuts, cache, 0)
            recorder.conv(layer, products)
            return hidden
        hidden = self._forward(module, hidden, cuts, cache, 0)
        held = cache.layers[layer]
        recorder.attention(layer, held.keys.numpy(), held.values.numpy())
        return hidden

    def logits(self, hidden: Floats) -> Logits:
        """The head on rows `hidden` [n, H] of a trace: [n, V]; the table goes through memory once per call."""
        name = EMBEDDING if self.spec.tie_word_embeddings else HEAD
        rows = torch.from_numpy(np.ascontiguousarray(hidden))
        logits = np.empty((len(hidden), self.spec.vocab_size), np.float32)
        for start in range(0, self.spec.vocab_size, TABLE_ROWS):
            stop = min(start + TABLE_ROWS, self.spec.vocab_size)
            part = torch.from_numpy(self.weights.rows(name, start, stop))
            logits[:, start:stop] = torch.nn.functional.linear(rows, part).numpy()
        return logits

    def layers(self) -> Iterator[Any]:
        """Every decoder layer with its weights, the next one being read while the former is in use."""
        count = self.spec.num_hidden_layers
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(self.layer, 0)
            for layer in range(count):
                module = coming.result()
                if layer + 1 < count:
                    coming = reader.submit(self.layer, layer + 1)
                yield module

    def layer(self, layer: int) -> Any:
        with torch.device("meta"):
            module = Lfm2DecoderLayer(self.config, layer)
        prefix = f"model.layers.{layer}."
        names = [name for name in self.spec.source_tensors() if name.startswith(prefix)]
        tensors = {name.removeprefix(prefix): torch.from_numpy(self.weights.whole(name)) for name in names}
        module.load_state_dict(tensors, strict=True, assign=True)
        return module.eval().requires_grad_(False)

    def _forward(
        self, module: Any, hidden: torch.Tensor, cuts: Sequence[tuple[int, int]], cache: Any, past: int
    ) -> torch.Tensor:
        """One layer over hidden [B, T, H], in the pieces `cuts`, after `past` tokens in the cache."""
        pieces = []
        for start, stop in cuts:
            piece = hidden[:, start:stop]
            positions = torch.arange(past + start, past + stop)[None]
            pieces.append(
                module(
                    piece,
                    position_embeddings=self.rotary(piece, positions),
                    attention_mask=causal_mask(past + start, stop - start) if module.is_attention_layer else None,
                    position_ids=positions,
                    cache=cache,
                )
            )
        return torch.cat(pieces, dim=1)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the table for ids [B, S]: [B, S, H]; no other row is read."""
        unique, places = np.unique(ids.numpy(), return_inverse=True)
        rows = np.concatenate([self.weights.rows(EMBEDDING, int(token), int(token) + 1) for token in unique])
        return torch.from_numpy(rows[places.reshape(ids.shape)])

    def norm(self) -> Any:
        norm = Lfm2RMSNorm(self.spec.hidden_size, eps=self.config.norm_eps)
        norm.load_state_dict({"weight": torch.from_numpy(self.weights.whole(FINAL_NORM))}, assign=True)
        return norm.requires_grad_(False)


def causal_mask(past: int, new: int) -> torch.Tensor:
    """What eager attention adds to its scores, [1, 1, S, T]: 0 for what a token may see, else the lowest float."""
    visible = torch.arange(past + new)[None] <= past + torch.arange(new)[:, None]
    return torch.where(visible, 0.0, torch.finfo(torch.float32).min)[None, None]
