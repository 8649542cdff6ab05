"""Calibration layer by layer: one layer in memory, the calibration text's activations in files.

Each matrix is quantized for the inputs that it will see, which come through everything quantized before it:

    table, then every layer:  norm -> in_proj | q, k, v -> mix -> out_proj -> add -> norm -> w1, w3 -> gate -> w2 -> add
                                      ^ inputs, quantize          ^                          ^                 ^

The modules are transformers' own, as in `reference.stream`; a matrix that is quantized is put back dequantized.
Letters: T tokens of all sequences, H hidden, K columns of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lfm2export.calibrate.activations import Scratch, Sequences
from lfm2export.reference.stream import StreamReference, causal_mask

Array = NDArray[np.float32]
Span = tuple[int, int]

#: Rows of a weight that are put in its place at once, and tokens that the FFN, which is wide, computes at once.
ROWS, TOKENS = 512, 128


@dataclass(frozen=True)
class Linear:
    """One packed matrix of a layer: its parts by their name in the checkpoint."""

    parts: Mapping[str, Any]

    def weights(self) -> dict[str, Array]:
        return {name: module.weight.numpy() for name, module in self.parts.items()}

    def put(self, name: str, rows: Callable[[int, int], Array]) -> None:
        """Compute from now on with the weight whose rows [start, stop) `rows` gives; no second one is made."""
        weight = self.parts[name].weight
        for start in range(0, len(weight), ROWS):
            stop = min(start + ROWS, len(weight))
            weight[start:stop] = torch.from_numpy(rows(start, stop))


class Stream:
    """The hidden states of all sequences [T, H], and the layer that they are at.

    :meth:`inputs` gives what each packed matrix of the layer reads, in order; between two of them the caller may change
    the former's weights. After the last, :meth:`finish` leaves the layer's outputs in `hidden`.
    """

    def __init__(
        self,
        reference: StreamReference,
        sequences: Sequences,
        scratch: Scratch,
        pool: ThreadPoolExecutor,
        name: str = "hidden",
    ) -> None:
        self.reference, self.sequences, self.scratch, self.pool, self.name = reference, sequences, scratch, pool, name
        self.hidden = scratch.array(name, (sequences.rows, reference.spec.hidden_size))
        for span, tokens in zip(sequences.ranges(), sequences.tokens, strict=True):
            self.hidden[slice(*span)] = reference.embed(torch.tensor([tokens]))[0].numpy()
        self.module: Any = None
        self.linears: list[Linear] = []

    def enter(self, layer: int) -> None:
        """Read a layer's weights."""
        self.module = self.reference.layer(layer)
        prefix = f"model.layers.{layer}."
        operator = self.module.self_attn if self.module.is_attention_layer else self.module.conv
        first = ("q_proj", "k_proj", "v_proj") if self.module.is_attention_layer else ("in_proj",)
        kind = "self_attn" if self.module.is_attention_layer else "conv"
        ffn = self.module.feed_forward
        self.linears = [
            Linear({f"{prefix}{kind}.{name}.weight": operator.get_submodule(name) for name in first}),
            Linear({f"{prefix}{kind}.out_proj.weight": operator.out_proj}),
            Linear({f"{prefix}feed_forward.{name}.weight": ffn.get_submodule(name) for name in ("w1", "w3")}),
            Linear({f"{prefix}feed_forward.w2.weight": ffn.w2}),
        ]
        self._out_proj, self._w2 = operator.out_proj, ffn.w2
        operator.out_proj = ffn.w2 = torch.nn.Identity()  # what comes out of the operator is what out_proj reads

    def inputs(self, index: int, former: Array | None) -> Array:
        """What matrix `index` of the layer reads, [T, K]; `former`: what the one before it read."""
        stage = (self._operator_inputs, self._mixed, self._ffn_inputs, self._gated)[index]
        width = next(iter(self.linears[index].parts.values())).in_features
        out = self.scratch.array(f"{self.name}.inputs{index % 2}", (self.sequences.rows, width))
        self._each(lambda rows: stage(rows, out, former))
        return out

    def finish(self, former: Array) -> None:
        def add(rows: slice) -> None:
            for piece in _pieces(rows):
                self.hidden[piece] += self._w2(_tensor(former[piece])).numpy()[0]

        self._each(add)
        self.module, self.linears = None, []
        del self._out_proj, self._w2

    def _operator_inputs(self, rows: slice, out: Array, former: Array | None) -> None:
        out[rows] = self.module.operator_norm(_tensor(self.hidden[rows]))[0].numpy()

    def _mixed(self, rows: slice, out: Array, former: Array | None) -> None:
        assert former is not None
        x = _tensor(former[rows])
        if not self.module.is_attention_layer:
            out[rows] = self.module.conv(x)[0].numpy()
            return
        positions = torch.arange(x.shape[1])[None]
        mixed, _ = self.module.self_attn(
            x, position_embeddings=self.reference.rotary(x, positions), attention_mask=causal_mask(0, x.shape[1])
        )
        out[rows] = mixed[0].numpy()

    def _ffn_inputs(self, rows: slice, out: Array, former: Array | None) -> None:
        assert former is not None
        self.hidden[rows] += self._out_proj(_tensor(former[rows])).numpy()[0]
        out[rows] = self.module.ffn_norm(_tensor(self.hidden[rows]))[0].numpy()

    def _gated(self, rows: slice, out: Array, former: Array | None) -> None:
        assert former is not None
        for piece in _pieces(rows):
            out[piece] = self.module.feed_forward(_tensor(former[piece]))[0].numpy()

    def _each(self, work: Callable[[slice], None]) -> None:
        list(self.pool.map(lambda span: work(slice(*span)), self.sequences.ranges()))


def _pieces(rows: slice) -> list[slice]:
    """`rows` in pieces of :data:`TOKENS`, for what is made of each token by itself."""
    return [slice(start, min(start + TOKENS, rows.stop)) for start in range(rows.start, rows.stop, TOKENS)]


def _tensor(rows: Array) -> torch.Tensor:
    """[S, K] of a mapped file -> [1, S, K] in memory."""
    return torch.from_numpy(np.array(rows))[None]
