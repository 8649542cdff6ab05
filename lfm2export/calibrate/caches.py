"""Scales of int8 keys and values: the largest of each channel over text, one layer in memory at a time.

    keys    [K, D]   the largest sqrt(k[d]^2 + k[d + D/2]^2), for both channels of the pair
    values  [K, D]   the largest |v|
                     times HEADROOM / 127

Rotation turns each pair of a key's channels by an angle that grows with the position, so the length of the pair is what
a channel may reach at positions that the text, in sequences of 512 tokens, does not have.
Letters: K KV heads, T tokens, D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from lfm2export.calibrate.activations import workers
from lfm2export.calibrate.text import shipped_text
from lfm2export.checkpoint import Checkpoint
from lfm2export.kv_scales import LARGEST_CODE, KvScales, LayerScales
from lfm2export.progress import Progress, silent
from lfm2export.reference.run import Floats, Recorder, Run
from lfm2export.reference.stream import StreamReference
from lfm2export.reference.weights import SourceWeights
from lfm2export.spec import ModelSpec
from lfm2export.text.tokenizer import ChatTokenizer

Array = NDArray[np.float32]

#: Of the shipped calibration text.
TOKENS = 4096

#: A code of 127 is so many times the largest of the text. KLD of the shipped model's q4 by cached decode over 32 chunks
#: of its held-out text, as a multiple of that with float32 caches: .7 1.67, .85 1.08, 1 1.004, 1.1 1.002, 1.25 1.001,
#: 1.5 1.005, 2 1.005, 4 1.022; one scale for all channels of a layer: 1 1.002.
HEADROOM = 1.25

#: A channel that the text never moves still needs a scale.
TINY_SCALE = 1e-8


def measure_kv_scales(checkpoint: Checkpoint, threads: int, progress: Progress = silent) -> KvScales:
    """Scales of every attention layer of `checkpoint`, from PyTorch on its own weights: the same for any `threads`.

    Raises:
        PromptError: the tokenizer does not belong to the model.
        TokenizerError: there is no tokenizer that can be read.
        SourceError, TensorError: the checkpoint cannot be read, or holds NaN or Inf.
    """
    spec = checkpoint.spec
    text = shipped_text(ChatTokenizer(checkpoint.folder), spec, TOKENS)
    reference = StreamReference(SourceWeights(checkpoint))
    watches = [_Watch(spec, Run.prefill(sequence, caches_from=None)) for sequence in text.sequences]
    hidden = [reference.embed(torch.tensor([watch.run.tokens])) for watch in watches]
    count = spec.attention_layers[-1] + 1 if spec.attention_layers else 0
    with workers(threads) as pool:
        for layer, module in zip(range(count), reference.layers(), strict=False):
            hidden = list(pool.map(partial(reference.recorded, layer, module), hidden, watches))
            progress("measure caches", layer + 1, count, "layers")
    layers = {layer: LayerScales(*(_scales([w.largest[layer][i] for w in watches]) for i in (0, 1)))
              for layer in spec.attention_layers}  # fmt: skip
    return KvScales(layers, text.name, text.sha256, text.tokens)


def largest(keys: Floats, values: Floats) -> tuple[Array, Array]:
    """The largest of each channel [K, D] of keys, after rotation, and of values, [1, K, T, D] each; see above."""
    first, second = np.split(keys[0], 2, axis=-1)
    pairs = np.sqrt(np.square(first) + np.square(second)).max(axis=1)
    return np.concatenate([pairs, pairs], axis=-1), np.abs(values[0]).max(axis=1)


def _scales(found: Sequence[Array]) -> Array:
    """Of what each sequence has found."""
    scales = np.max(found, axis=0) * np.float32(HEADROOM / LARGEST_CODE)
    limited: Array = np.maximum(scales, np.float32(TINY_SCALE))
    return limited


class _Watch(Recorder):
    """Keeps of one run the largest keys and values by layer, and nothing else."""

    def __init__(self, spec: ModelSpec, run: Run) -> None:
        super().__init__(spec, run)
        self.largest: dict[int, tuple[Array, Array]] = {}

    def attention(self, layer: int, keys: Floats, values: Floats) -> None:
        self.largest[layer] = largest(keys, values)
