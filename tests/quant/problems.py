"""Weights and inputs to quantize for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def correlated(random: np.random.Generator, tokens: int, columns: int, spread: float = 1.0) -> NDArray[np.float64]:
    """Inputs [T, K] that are correlated and differ in size from column to column."""
    mixing = np.eye(columns) + random.standard_normal((columns, columns)) / np.sqrt(columns)
    rows: NDArray[np.float64] = random.standard_normal((tokens, columns)) @ mixing
    return rows * np.exp(spread * random.standard_normal(columns))


def problem(rows: int, columns: int, seed: int = 0, tokens: int = 300, spread: float = 1.0) -> tuple[Array, Array]:
    """(weight [N, K], H [K, K] of correlated inputs)."""
    random = np.random.default_rng((seed, rows, columns))
    inputs = correlated(random, tokens, columns, spread)
    weight = random.standard_normal((rows, columns)) * 0.02
    return weight.astype(np.float32), (inputs.T @ inputs / tokens).astype(np.float32)
