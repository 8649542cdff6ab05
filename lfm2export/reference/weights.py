"""The reference's weights: the checkpoint's, or what a caller puts in their place, always float32 in the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lfm2export.checkpoint import Checkpoint
from lfm2export.errors import TensorError

#: (name, start, stop) -> rows [start, stop) of that tensor as float32, or None to take the checkpoint's.
Override = Callable[[str, int, int], NDArray[np.float32] | None]


@dataclass(frozen=True)
class SourceWeights:
    """Rows of tensors by their name in the checkpoint. `half` rounds the checkpoint's values to float16 and back."""

    checkpoint: Checkpoint
    override: Override | None = None
    half: bool = False

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) of axis 0.

        Raises:
            TensorError: the override's rows have another shape, or the checkpoint's hold NaN or Inf.
        """
        shape = self.checkpoint.tensors[name].shape
        given = self.override(name, start, stop) if self.override is not None else None
        if given is None:
            rows = self.checkpoint.rows(name, start, stop)
            return rows.astype(np.float16).astype(np.float32) if self.half else rows
        if given.shape != (stop - start, *shape[1:]):
            raise TensorError(
                f"the replacement of {name} has shape {given.shape}, expected {(stop - start, *shape[1:])}"
            )
        return np.ascontiguousarray(given, np.float32)

    def whole(self, name: str) -> NDArray[np.float32]:
        return self.rows(name, 0, self.checkpoint.tensors[name].shape[0])
