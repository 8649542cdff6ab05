"""What calibration decided, on disk: a checkpoint in which some tensors have new values, and some matrices blocks.

    NAME.values.npy                                         float32 in the checkpoint's shape: a folded norm or kernel
    NAME.codes.npy  NAME.scales.npy  NAME.zero_points.npy   a matrix in blocks, as `quant.blocks` lays them out

Files of blocks are written from it as from the checkpoint itself (`weights.WeightSource`): what is not here is read
there. Arrays are read by rows through a map of the file, so that memory stays what a piece takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lfm2export.checkpoint import Checkpoint, StoredTensor
from lfm2export.weights import BlockFormat, QuantizedBlocks

Array = NDArray[np.float32]


class Store:
    """A `weights.WeightSource` over `checkpoint`; `folder` exists, and is the caller's to remove."""

    def __init__(self, checkpoint: Checkpoint, folder: Path) -> None:
        self.checkpoint, self.folder = checkpoint, folder
        self._values: set[str] = set()
        self._blocks: dict[str, tuple[BlockFormat, int, float]] = {}

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        return self.checkpoint.tensors

    def rows(self, name: str, start: int, stop: int) -> Array:
        """Rows [start, stop) of axis 0, float32: the value put here, else the checkpoint's."""
        if name in self._values:
            return np.array(self._read(name, "values")[start:stop])
        return self.checkpoint.rows(name, start, stop)

    def prepared(self, name: str, start: int, stop: int, format: BlockFormat) -> QuantizedBlocks | None:
        """Rows [start, stop) in blocks, if they were put here in that format (its quantizer is not asked for).

        What did not fit float16 is told with the first row.
        """
        held = self._blocks.get(name)
        if held is None or held[0] != replace(format, quantizer=held[0].quantizer):
            return None
        codes, scales = (np.array(self._read(name, part)[start:stop]) for part in ("codes", "scales"))
        zeros = None if format.symmetric else np.array(self._read(name, "zero_points")[start:stop])
        return QuantizedBlocks(codes, scales, zeros, *(held[1:] if start == 0 else (0, 0.0)))

    def put_values(self, name: str, values: Array) -> None:
        """Let `name` have these values, of its own shape."""
        if values.shape != tuple(self.tensors[name].shape):
            raise AssertionError(f"{name} has shape {self.tensors[name].shape}, not {values.shape}")
        np.save(self._path(name, "values"), values)
        self._values.add(name)

    def put_blocks(self, name: str, format: BlockFormat, blocks: QuantizedBlocks) -> None:
        """Let the matrix `name` be these blocks, wherever a file stores it in `format`."""
        if len(blocks.scales) != self.tensors[name].shape[0]:
            raise AssertionError(f"{name} has {self.tensors[name].shape[0]} rows, not {len(blocks.scales)}")
        np.save(self._path(name, "codes"), blocks.codes)
        np.save(self._path(name, "scales"), blocks.scales)
        if blocks.zero_points is not None:
            np.save(self._path(name, "zero_points"), blocks.zero_points)
        self._blocks[name] = (format, blocks.saturated, blocks.largest)

    def _path(self, name: str, part: str) -> Path:
        return self.folder / f"{name}.{part}.npy"

    def _read(self, name: str, part: str) -> NDArray[np.generic]:
        return np.load(self._path(name, part), mmap_mode="r")  # type: ignore[no-any-return]
