"""int8 by output channel, one scale a row, so that no kernel's intermediate sums saturate.

x86 processors without VNNI (all before Intel's Ice Lake and AMD's Zen 4) multiply uint8 activations by int8 weights two
at a time and add the pair in 16 bits, saturating (vpmaddubsw): 255 * (100 + 100) becomes 32,767. onnxruntime's kernel
pairs columns 2i and 2i + 1. With scales from the largest weight alone the shipped model's KLD is .00066 with VNNI and
.0043 without (measured under emulation); seven bits everywhere would cure that and double every error. Here a row's
scale is the least at which no pair can saturate: of codes of one sign, a + b <= 128, for 255 * 128 < 2**15. On Gaussian
rows that is 1.3 times the plain scale, never more than twice.
"""

from __future__ import annotations

import numpy as np

from lfm2export.errors import TensorError
from lfm2export.quant.grid import HALF_MAX, HALF_TINY, Array
from lfm2export.weights import BlockFormat, QuantizedBlocks

#: The largest code, and the largest sum of a pair before both are rounded, which adds at most 1.
LARGEST = 127


def largest_sum(rows: Array) -> Array:
    """[N, K] -> [N]: the greatest magnitude of a value, or of a sum of two of one sign in columns 2i and 2i + 1."""
    even, odd = rows[:, 0::2], rows[:, 1::2]
    paired = even[:, : odd.shape[1]] + odd
    found: Array = np.maximum(np.abs(rows).max(axis=1, initial=0), np.abs(paired).max(axis=1, initial=0))
    return found


def quantize_channel(weight: Array, format: BlockFormat, importance: Array | None = None) -> QuantizedBlocks:
    """`weight` [N, K] with one block a row, on the nearest codes; `importance` changes nothing.

    Raises:
        TensorError: the weight holds NaN or Inf.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        largest = largest_sum(weight)
    if not np.isfinite(largest).all():
        raise TensorError("a weight is NaN or Inf; a matrix must be finite to be quantized")
    scales = _scales(largest)
    limited = largest > LARGEST * HALF_MAX
    inverse = np.divide(1.0, scales, out=np.zeros_like(scales), where=scales > HALF_TINY)
    codes = np.clip(np.rint(weight * inverse[:, None]), -LARGEST, LARGEST)
    return QuantizedBlocks(
        (codes + format.zero_point).astype(np.uint8)[:, None, :],
        scales.astype(np.float16)[:, None],
        None,
        int(limited.sum()),
        float(largest[limited].max(initial=0)),
    )


def _scales(largest: Array) -> Array:
    """The least float16 number, as float32, on which `largest` [N] has a code of at most 127."""
    wanted = np.minimum(largest / np.float32(LARGEST), np.float32(HALF_MAX))
    scales = wanted.astype(np.float16)
    too_small = scales.astype(np.float32) < wanted
    with np.errstate(over="ignore"):  # the next number after the largest is not taken
        above = np.nextafter(scales, np.float16(np.inf))
    found: Array = np.where(too_small, above, scales).astype(np.float32)
    return found
