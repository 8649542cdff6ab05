"""How far a block may be from its weights where codes are moved on purpose, so that a damaged one still shows.

GPTQ leaves the nearest code to make up for other columns, a weighted search lets columns go that no input reaches, and
tuning moves scales: none of these can be told from damage by a rule about nearest codes. But they move codes a little
and in both directions. With e = w - q over a block and s its scale:

    slope   |<e, q>| / <q, q>    the block as a whole is too large or too small: 0.75 for a scale that is 4 times too
                                 large, 0.5 for 2 times, about 1 for values that belong elsewhere (another block's, or
                                 another order: a transposed matrix)
    mean    |mean e| / s         the block as a whole lies beside its weights: 1 for a zero point that is off by one
    far     max |e| / s          a single code: it has to be changed by more than this to be caught

Over the 160,000 blocks of the shipped model, calibrated, slope has the quantiles .011 (half), .066 (99.9 %) and .29
(largest), mean .045, .24 and .35, far .87, 2.5 and 6.5; calibration keeps a simpler method for a row that would go
beyond the limits below, so that no file that it made does.

Letters: N rows, G blocks per row, S block_size.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lfm2export.quant.blocks import dequantize, in_blocks
from lfm2export.weights import BlockFormat, QuantizedBlocks

SLOPE, MEAN, FAR = 0.35, 0.55, 5.0

#: The smallest unit that errors are measured in: twice what rounds to a zero scale in float16.
UNIT = 2.0**-24


def beyond(weight: NDArray[np.float32], quantized: QuantizedBlocks, format: BlockFormat) -> NDArray[np.bool_]:
    """Blocks [N, G] of `quantized` that are further from `weight` [N, K] than moving codes on purpose takes them."""
    columns = weight.shape[1]
    values = in_blocks(dequantize(quantized, format, columns), format.block_size)
    error = in_blocks(weight, format.block_size) - values
    unit = np.maximum(np.abs(quantized.scales.astype(np.float32)), np.float32(UNIT))
    with np.errstate(invalid="ignore"):  # a damaged scale may be infinite; NaN is beyond every limit
        along = np.abs(np.einsum("ngs,ngs->ng", error, values))
        within = along <= SLOPE * np.einsum("ngs,ngs->ng", values, values) + UNIT * UNIT
        within &= np.abs(error.mean(axis=-1)) <= MEAN * unit
        within &= np.abs(error).max(axis=-1) <= FAR * unit
    result: NDArray[np.bool_] = ~within
    return result
