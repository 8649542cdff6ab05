"""One teacher-forced sequence for the reference, and what comes of it. numpy only.

Letters: T tokens, K KV heads, D head_dim, H hidden, L conv_L_cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfm2export.errors import StepError
from lfm2export.spec import CONV, ModelSpec

Floats = NDArray[np.float32]

#: A faint run has a residual stream of this size: the embedding, and all that is added to it, are scaled. A norm's eps
#: is then about as large as the mean square that it is added to, or larger, and a wrong one shows. A power of two.
FAINT = 2.0**-10

#: The linear layers of a decoder layer that a faint run scales. Queries and keys come from a norm, so they take less.
FAINT_PARTS = {
    "conv.out_proj": FAINT,
    "self_attn.out_proj": FAINT,
    "feed_forward.w2": FAINT,
    "self_attn.q_proj": 2.0**-6,
    "self_attn.k_proj": 2.0**-6,
}

#: Most tokens that go through eager attention at once: 2.6B's scores over 32,768 tokens then take 2 GiB.
PIECE = 512


@dataclass(frozen=True)
class Run:
    """Tokens [T], fed in steps of the sizes `chunks`: (5, 1, 1) is a prompt of 5 and two cached steps.

    caches_from: caches can be read after that many tokens or more; None keeps none.
    """

    tokens: tuple[int, ...]
    chunks: tuple[int, ...]
    caches_from: int | None = 0

    def __post_init__(self) -> None:
        if sum(self.chunks) != len(self.tokens) or not self.tokens or min(self.chunks) < 1:
            raise StepError(f"steps of {self.chunks} tokens do not make up a sequence of {len(self.tokens)}")

    @classmethod
    def cached(cls, prompt: Sequence[int], answer: Sequence[int], caches_from: int | None = 0) -> Run:
        """The prompt at once, then the answer token by token."""
        chunks = ([len(prompt)] if prompt else []) + [1] * len(answer)
        return cls((*prompt, *answer), tuple(chunks), caches_from)

    @classmethod
    def prefill(cls, tokens: Sequence[int], caches_from: int | None = 0) -> Run:
        """All tokens at once."""
        return cls(tuple(tokens), (len(tokens),), caches_from)

    def pieces(self) -> list[tuple[int, int]]:
        """[start, stop) of every forward pass: the chunks, none longer than PIECE."""
        cuts: list[tuple[int, int]] = []
        start = 0
        for size in self.chunks:
            for first in range(start, start + size, PIECE):
                cuts.append((first, min(first + PIECE, start + size)))
            start += size
        return cuts


@dataclass(frozen=True)
class Trace:
    """What one run left behind.

    hidden [T, H]: the last layer's output after the final norm; the head makes logits of any rows of it.
    keys, values: per attention layer [1, K, T, D]. products: per conv layer Bx [1, H, T] with L zeros before the first
    token, cut to what :meth:`caches` may need; `offset` is the first token it holds, counted from the zeros.
    """

    spec: ModelSpec
    run: Run
    hidden: Floats
    keys: dict[int, Floats] = field(repr=False)
    values: dict[int, Floats] = field(repr=False)
    products: dict[int, Floats] = field(repr=False)

    def caches(self, length: int) -> tuple[NDArray[Any], ...]:
        """Every cache tensor after `length` tokens, in contract order: conv [1, H, L], key and value [1, K, P, D].

        Raises:
            StepError: the run did not keep the caches of that length.
        """
        start = self.run.caches_from
        if start is None or not start <= length <= len(self.run.tokens):
            raise StepError(f"the caches after {length} tokens were not kept; the run keeps them from {start}")
        found: list[NDArray[Any]] = []
        for layer, kind in enumerate(self.spec.layer_types):
            if kind == CONV:
                found.append(self.products[layer][:, :, length - start : length - start + self.spec.conv_L_cache])
            else:
                found += [self.keys[layer][:, :, :length], self.values[layer][:, :, :length]]
        return tuple(found)


class Recorder:
    """Gathers keys, values and products of one run, layer by layer."""

    def __init__(self, spec: ModelSpec, run: Run) -> None:
        self.spec, self.run = spec, run
        self.keys: dict[int, Floats] = {}
        self.values: dict[int, Floats] = {}
        self.products: dict[int, Floats] = {}

    def attention(self, layer: int, keys: Floats, values: Floats) -> None:
        """keys, values [1, K, T, D] after the last token."""
        if self.run.caches_from is not None:
            self.keys[layer], self.values[layer] = keys.copy(), values.copy()

    def conv(self, layer: int, products: Sequence[Floats]) -> None:
        """products: Bx of each forward pass, [1, H, S]; the state before the first token is zeros."""
        if self.run.caches_from is not None:
            before = np.zeros((1, self.spec.hidden_size, self.spec.conv_L_cache), np.float32)
            whole = np.concatenate([before, *products], axis=2)
            self.products[layer] = whole[:, :, self.run.caches_from :].copy()

    def trace(self, hidden: Floats) -> Trace:
        """hidden [T, H] after the final norm."""
        return Trace(self.spec, self.run, hidden, self.keys, self.values, self.products)
