"""Quantizers: a float32 matrix to blocks of integer codes in the layout of com.microsoft MatMulNBits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lfm2export.errors import TensorError
from lfm2export.quant.blocks import dequantize
from lfm2export.quant.channel import quantize_channel
from lfm2export.quant.rounding import quantize_round
from lfm2export.quant.search import quantize_search
from lfm2export.weights import BlockFormat, QuantizedBlocks, Quantizer, WeightSource

__all__ = ["QUANTIZERS", "blocks_of", "dequantize", "quantize", "rounded"]

Array = NDArray[np.float32]

QUANTIZERS: dict[Quantizer, Callable[[Array, BlockFormat, Array | None], QuantizedBlocks]] = {
    "round": quantize_round,
    "search": quantize_search,
    "channel": quantize_channel,
}


def quantize(weight: Array, format: BlockFormat, importance: Array | None = None) -> QuantizedBlocks:
    """`weight` float32 [N, K] in blocks of `format`, by the quantizer that it names.

    importance: float32 [K], nonnegative: the weight of each column's squared error. Rows are independent: any split of
    N gives the same bytes. Single-threaded; numpy releases the interpreter lock, so call it from several threads.

    Raises:
        TensorError: NaN or Inf in the weight, or a shape or dtype that does not fit.
    """
    if weight.ndim != 2 or weight.dtype != np.float32:
        raise TensorError(
            f"a matrix to quantize has shape {weight.shape} and dtype {weight.dtype}, expected two axes of float32"
        )
    return QUANTIZERS[format.quantizer](weight, format, importance)


def blocks_of(source: WeightSource, name: str, start: int, stop: int, format: BlockFormat) -> QuantizedBlocks:
    """Rows [start, stop) of source tensor `name` in blocks: those that `source` has prepared, else quantized here.

    Raises:
        TensorError: as :func:`quantize`; the message names the tensor.
    """
    prepared = source.prepared(name, start, stop, format)
    if prepared is not None:
        return prepared
    rows = source.rows(name, start, stop)
    try:
        return quantize(rows, format)
    except TensorError as error:
        raise TensorError(f"{name}: {error}") from error


def rounded(rows: Array, format: BlockFormat) -> Array:
    """`rows` [N, K] as a file holds them in `format`."""
    return np.ascontiguousarray(dequantize(quantize(rows, format), format, rows.shape[1]))
