"""The choice of one option per group for the least sum of losses within a limit of bytes: a knapsack of many choices.

A sum over the groups so far is a point (bytes, loss); one that needs no fewer bytes than another and loses no less can
be part of no best answer. What is left, the front, grows by one group at a time and holds the best answer for every
limit at once. With real matrices few sums of bytes differ (all sizes are multiples of one number), so the front stays
small and the answer is exact; should it grow beyond :data:`MOST` points, only the best one of each of as many equal
steps of bytes is kept: the answer still fits, and is best up to one step per group.
Source: the dynamic programme with dominance of Kellerer, Pferschy and Pisinger, Knapsack Problems (2004), ch. 11.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Points of a front: at 2.6B, 121 groups of 4-byte references to where each point came from are then 63 MB.
MOST = 1 << 17


@dataclass(frozen=True)
class Option:
    """What one choice for one group costs; losses are added up, so they may be of any sign."""

    bytes: int
    loss: float


@dataclass(frozen=True)
class Front:
    """Sums over all groups: bytes ascending, losses descending. `origins`, per group: point * options + option."""

    bytes: NDArray[np.int64]
    losses: NDArray[np.float64]
    origins: tuple[NDArray[np.int32], ...]
    options: tuple[int, ...]

    @property
    def least(self) -> int:
        """Bytes of the smallest choice."""
        return int(self.bytes[0])

    @property
    def greatest(self) -> int:
        """Bytes of the choice of least loss; more bring nothing."""
        return int(self.bytes[-1])

    def best(self, limit: int) -> tuple[int, ...]:
        """The number of the option to take of each group: least loss in at most `limit` bytes.

        Raises:
            ValueError: `limit` is below :attr:`least`.
        """
        point = int(np.searchsorted(self.bytes, limit, side="right")) - 1
        if point < 0:
            raise ValueError(f"{limit} bytes, expected at least {self.least}")
        chosen = []
        for origin, count in zip(reversed(self.origins), reversed(self.options), strict=True):
            point, option = divmod(int(origin[point]), count)
            chosen.append(option)
        return tuple(reversed(chosen))


def front(groups: Sequence[Sequence[Option]], most: int = MOST) -> Front:
    """The best sums of one option per group, for every number of bytes."""
    sizes, losses = np.zeros(1, np.int64), np.zeros(1)
    origins = []
    for group in groups:
        added = np.array([option.bytes for option in group], np.int64)
        lost = np.array([option.loss for option in group])
        all_sizes = (sizes[:, None] + added).reshape(-1)
        all_losses = (losses[:, None] + lost).reshape(-1)
        kept = _thinned(all_sizes, _undominated(all_sizes, all_losses), most)
        sizes, losses = all_sizes[kept], all_losses[kept]
        origins.append(kept.astype(np.int32))
    return Front(sizes, losses, tuple(origins), tuple(len(group) for group in groups))


def _undominated(sizes: NDArray[np.int64], losses: NDArray[np.float64]) -> NDArray[np.intp]:
    """Indices of the points that no other one beats or equals in both, by ascending size."""
    order = np.lexsort((losses, sizes))
    ordered = losses[order]
    best_before = np.concatenate([[np.inf], np.minimum.accumulate(ordered)[:-1]])
    kept: NDArray[np.intp] = np.asarray(order[ordered < best_before], np.intp)
    return kept


def _thinned(sizes: NDArray[np.int64], kept: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    """At most `most` + 1 of the points: the smallest, and the last one (of least loss) of each step of bytes."""
    if len(kept) <= most:
        return kept
    offsets = sizes[kept] - sizes[kept[0]]
    steps = offsets * most // (offsets[-1] + 1)
    last = np.append(steps[1:] != steps[:-1], True)
    last[0] = True
    found: NDArray[np.intp] = kept[last]
    return found
