"""Weights as recipes: what an initializer is made of, to be evaluated piece by piece while its file is written.

No initializer of the model is ever resident. The tracer gives each one the recipe "this source tensor, as it is";
passes rewrite recipes (stack rows, transpose, cast, quantize into blocks) as they rewrite nodes; `writer`
evaluates them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Component = Literal["values", "codes", "scales", "zero_points"]
Quantizer = Literal["round", "search", "channel"]

#: Metadata key under which torch's exporter leaves the module path of a node, outermost first.
SCOPES = "pkg.torch.onnx.name_scopes"

#: Key of an `onnx_ir.Value`'s meta store under which its recipe lies.
RECIPE = "lfm2export.recipe"

#: Key under which an initializer with values says that its name is meant, and stays.
NAMED = "lfm2export.named"


def stacked_name(parts: Sequence[str]) -> str:
    """Name of the matrix stacked of source tensors: `model.layers.0.feed_forward.w1.weight+w3`."""
    return parts[0] + "".join("+" + part.rsplit(".", 2)[-2] for part in parts[1:])


@dataclass(frozen=True)
class BlockFormat:
    """How a matrix [N, K] is cut into blocks along K, as com.microsoft MatMulNBits reads it.

    bits: 4 or 8. block_size: 16, 32, 64, 128 or 256 values share one float16 scale (and zero point).
    symmetric: the zero point is 2**(bits-1) everywhere and is not stored. quantizer: how codes and scales are chosen.
    """

    bits: Literal[4, 8]
    block_size: int
    symmetric: bool
    quantizer: Quantizer = "search"

    def blocks(self, columns: int) -> int:
        return -(-columns // self.block_size)

    @property
    def zero_point(self) -> int:
        return 1 << (self.bits - 1)


@dataclass(frozen=True)
class ChannelFormat:
    """int8 codes with one scale per output channel, as MatMulIntegerToFloat multiplies by them: a row is one block."""

    def block(self, columns: int) -> BlockFormat:
        """The block format of a matrix of that many columns whose codes, less 128, are the int8 ones."""
        return BlockFormat(8, columns, symmetric=True, quantizer="channel")

    def padding(self, rows: int) -> int:
        """Rows of zeros that may follow: transposed, a multiple of 512 bytes from one line to the next, in which lines
        of a panel share few places of a cache, becomes an odd number of cache lines."""
        return 64 if rows % 512 == 0 else 0


@dataclass(frozen=True)
class QuantizedBlocks:
    """A matrix [N, K] as integer codes with one float16 scale, and perhaps a zero point, per block.

    In G blocks of S values a row: codes uint8 [N, G, S * bits / 8], scales float16 [N, G], zero_points uint8
    [N, ceil(G * bits / 8)] or None when the format is symmetric. saturated: how many blocks held a value that no
    float16 scale reaches; such values were limited to the largest one that it reaches. largest: the greatest magnitude
    among them, 0 when there is none.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float16]
    zero_points: NDArray[np.uint8] | None
    saturated: int = 0
    largest: float = 0.0


class SourceTensor(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


class WeightSource(Protocol):
    """What recipes are evaluated from: a checkpoint, read a range at a time, from any thread."""

    @property
    def tensors(self) -> Mapping[str, SourceTensor]: ...

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) of axis 0, a C-contiguous array that the caller may change."""
        ...

    def prepared(self, name: str, start: int, stop: int, format: BlockFormat) -> QuantizedBlocks | None:
        """The same rows in blocks of `format`, where they were quantized beforehand; None: quantize `rows`."""
        ...


@dataclass(frozen=True)
class Recipe:
    """One initializer: `parts` are source tensors stacked along axis 0 (rows), in the order given.

    dtype: ONNX name of the stored type ("FLOAT", "FLOAT16", "UINT8", "INT8").
    shape: as stored. A "values" initializer is the stack reshaped to `shape`; transpose: or with its axes reversed.
    block: set for the three components of a quantized matrix; they share one evaluation.
      codes       uint8   [N, blocks, block_size * bits / 8]   4 bit: low nibble first
      scales      float16 [N, blocks]
      zero_points uint8   [N, ceil(blocks * bits / 8)]         4 bit: low nibble first
    Where a row is one block of 8 bits, codes may be stored as int8, less 128, [N, K] or transposed, and scales as [N];
    then `padding` rows of zeros may follow, which `shape` counts.
    """

    parts: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: Literal["FLOAT", "FLOAT16", "UINT8", "INT8"] = "FLOAT"
    transpose: bool = False
    block: BlockFormat | None = None
    component: Component = "values"
    padding: int = 0

    def transposed(self) -> Recipe:
        """The same values with their axes stored in reverse: a matrix as [columns, rows]."""
        return replace(self, transpose=not self.transpose, shape=self.shape[::-1])
