"""What layer 0 sees, without any text: its input is a row of the embedding table for every token.

How much an error in column k of a matrix costs goes with the second moment of input k. For the matrices of a first
layer with a short convolution these moments follow from the weights alone: take tokens spread evenly over the table,
run them through the layer, average the squares.

    x = norm(table[ids]) * gain                    in_proj sees x
    B, C, u = in_proj(x); y = C * conv(B * u)      out_proj sees y
    h = table[ids] + out_proj(y)                   w1 and w3 see norm(h) * gain
                                                   w2 sees silu(w1 ..) * (w3 ..)

It is worth the trouble there and nowhere else: a product of three projections of token rows may put nearly all of its
energy into a few channels (98 % into one of 256 in the shipped model), and layer 0's errors pass through every layer.
Measured on the shipped model, KLD as a share of that of symmetric rounding, each ± .008: .781 without, .715 with tokens
drawn at random, .723 with the moments of real text. Layers further up see mixtures that such tokens do not make:
weights from them there, and from the norms' gains alone, made it worse (.758, .788).

Letters: n tokens, H hidden, L conv_L_cache, N rows, K columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lfm2export.errors import TensorError
from lfm2export.quant import quantize
from lfm2export.quant.grid import Array
from lfm2export.spec import CONV, ModelSpec
from lfm2export.weights import BlockFormat, QuantizedBlocks, SourceTensor, WeightSource

PREFIX = "model.layers.0."
TABLE = "model.embed_tokens.weight"

#: Tokens that are run: 2.6B's layer 0 takes them in a second or two.
TOKENS = 512

#: Fractional part of the golden ratio: multiples of it, modulo 1, leave no stretch of the table out, and no two
#: tokens are neighbours both in the table and in the run.
GOLDEN = 0.6180339887498949

#: Float32 values of a matrix in memory at once.
PIECE = 1 << 20


@dataclass(frozen=True)
class Weighted:
    """A `weights.WeightSource` over `source` whose matrices in `importance` are searched with their columns weighed.

    Only where a format searches in 4 bits: plain rounding weighs nothing, and 8 bits have nothing to win.
    """

    source: WeightSource
    importance: Mapping[str, Array]

    @property
    def tensors(self) -> Mapping[str, SourceTensor]:
        return self.source.tensors

    def rows(self, name: str, start: int, stop: int) -> Array:
        return self.source.rows(name, start, stop)

    def prepared(self, name: str, start: int, stop: int, format: BlockFormat) -> QuantizedBlocks | None:
        """Rows [start, stop) quantized with the matrix's importance, where it has one.

        Raises:
            TensorError: the weights hold NaN or Inf; the message names the tensor.
        """
        if name not in self.importance or format.quantizer != "search" or format.bits != 4:
            return self.source.prepared(name, start, stop, format)
        try:
            return quantize(self.source.rows(name, start, stop), format, self.importance[name])
        except TensorError as error:
            raise TensorError(f"{name}: {error}") from error


def first_layer_importance(source: WeightSource, spec: ModelSpec) -> dict[str, Array]:
    """Source tensor of layer 0 -> second moments [K] of its inputs; empty where layer 0 is no convolution.

    A matrix whose inputs do not fit float32 is left out: there is nothing to weigh with.

    Raises:
        SourceError and its kinds: the tensors cannot be read.
    """
    if spec.layer_types[0] != CONV or spec.conv_bias:
        return {}
    with np.errstate(over="ignore", invalid="ignore"):
        found = _inputs_of(source, spec)
    return {PREFIX + name: importance for name, importance in found.items() if np.isfinite(importance).all()}


def _inputs_of(source: WeightSource, spec: ModelSpec) -> dict[str, Array]:
    """Matrix -> second moments of its inputs, in the order of the computation that this module's docstring draws."""
    hidden = _rows(source, _spread(spec.vocab_size))
    seen = _normed(hidden, _whole(source, "operator_norm.weight"), spec.norm_eps)
    B, C, x = np.split(_project(source, "conv.in_proj.weight", seen), 3, axis=1)
    y = C * _convolved(B * x, _whole(source, "conv.conv.weight")[:, 0])
    hidden = hidden + _project(source, "conv.out_proj.weight", y)
    x = _normed(hidden, _whole(source, "ffn_norm.weight"), spec.norm_eps)
    return {
        "conv.in_proj.weight": moments(seen),
        "conv.out_proj.weight": moments(y),
        "feed_forward.w1.weight": moments(x),
        "feed_forward.w3.weight": moments(x),
        "feed_forward.w2.weight": _gated_moments(source, x),
    }


def moments(inputs: Array) -> Array:
    """Mean square of each column of `inputs` [n, K], to 6 bits: [K].

    The last bits of a matrix product differ between processors and numbers of threads; those of a file may not.
    """
    mean = np.einsum("nk,nk->k", inputs, inputs, dtype=np.float64) / len(inputs)
    mantissa, exponent = np.frexp(mean)
    rounded: Array = np.ldexp(np.rint(mantissa * 64) / 64, exponent).astype(np.float32)
    return rounded


def _spread(count: int) -> NDArray[np.int64]:
    """TOKENS tokens, evenly over `count`."""
    ids: NDArray[np.int64] = (np.arange(1, TOKENS + 1) * GOLDEN % 1 * count).astype(np.int64)
    return ids


def _rows(source: WeightSource, ids: NDArray[np.int64]) -> Array:
    """Rows of the table [n, H]; no other row is read."""
    return np.concatenate([source.rows(TABLE, int(token), int(token) + 1) for token in ids])


def _whole(source: WeightSource, name: str) -> Array:
    return source.rows(PREFIX + name, 0, source.tensors[PREFIX + name].shape[0])


def _project(source: WeightSource, name: str, x: Array) -> Array:
    """x [n, K] times the transposed matrix: [n, N]."""
    parts = [x @ source.rows(PREFIX + name, start, stop).T for start, stop in _cuts(source, name)]
    return np.concatenate(parts, axis=1)


def _gated_moments(source: WeightSource, x: Array) -> Array:
    """Second moments of silu(w1 x) * (w3 x) for x [n, H]; a part of the width at a time, for it is wide."""
    found = []
    for start, stop in _cuts(source, "feed_forward.w1.weight"):
        gate, up = (x @ source.rows(f"{PREFIX}feed_forward.{name}.weight", start, stop).T for name in ("w1", "w3"))
        found.append(moments(gate / (1 + np.exp(-gate)) * up))
    return np.concatenate(found)


def _cuts(source: WeightSource, name: str) -> list[tuple[int, int]]:
    """Row ranges of a matrix, of PIECE values at most."""
    rows, columns = source.tensors[PREFIX + name].shape
    step = max(1, PIECE // columns)
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def _normed(hidden: Array, gain: Array, eps: float) -> Array:
    variance = np.einsum("nh,nh->n", hidden, hidden) / np.float32(hidden.shape[1])
    normed: Array = hidden / np.sqrt(variance + np.float32(eps))[:, None] * gain
    return normed


def _convolved(Bx: Array, kernel: Array) -> Array:
    """Causal depthwise convolution of Bx [n, H] with `kernel` [H, L], whose last tap weighs the token itself."""
    taps = kernel.shape[1]
    padded = np.concatenate([np.zeros((taps - 1, Bx.shape[1]), np.float32), Bx])
    result = np.zeros_like(Bx)
    for tap in range(taps):
        result += padded[tap : tap + len(Bx)] * kernel[:, tap]
    return result
