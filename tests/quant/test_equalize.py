"""Exponents of channels: what brings columns to their median, what stays, and what no giver may become."""

from __future__ import annotations

import numpy as np
import pytest

from lfm2export.quant.equalize import MOST, column_squares, exponents, row_norms


def columns(**changed: float) -> np.ndarray:
    """64 columns of sizes near 1, some of them changed: c3=50."""
    found = np.random.default_rng(0).uniform(0.8, 1.25, 64)
    for name, value in changed.items():
        found[int(name[1:])] = value
    return found


def test_columns_of_ordinary_spread_stay() -> None:
    assert not exponents(columns(c1=1.35, c2=0.75), np.ones(64)).any()


def test_a_planted_factor_is_taken_away_to_the_nearest_power_of_two() -> None:
    for factor, exponent in ((1 / 64, 6), (1 / 50, 6), (1 / 10, 3), (8, -3), (200, -8)):
        givers = np.ones(64)
        givers[5] = 1 / factor
        found = exponents(columns(c5=factor * float(np.median(columns()))), givers)
        assert found[5] == exponent
        assert not np.delete(found, 5).any()


@pytest.mark.parametrize("share", [0.2, 1.0, 3.0, 40.0])
def test_a_factor_that_is_a_power_of_two_adds_its_exponent(share: float) -> None:
    """So codes are the same, whatever such factors a model is written with."""
    sizes = columns(c9=share)
    givers = np.where(np.arange(64) == 9, 1.0, 1e6)  # room enough
    for power in (3, -3):
        moved = exponents(np.where(np.arange(64) == 9, sizes * 2.0**power, sizes), givers)[9]
        far = exponents(np.where(np.arange(64) == 9, sizes * 2.0 ** (2 * power), sizes), givers)[9]
        assert moved - far == power


def test_no_giver_grows_beyond_twice_the_largest() -> None:
    givers = np.ones(64)
    givers[7], givers[8] = 20.0, 0.25
    found = exponents(columns(c6=1000.0, c7=1000.0, c8=1000.0), givers)
    assert 20 < givers[6] * 2.0 ** -found[6] <= 40
    assert 20 < givers[7] * 2.0 ** -found[7] <= 40
    assert 20 < givers[8] * 2.0 ** -found[8] <= 40


def test_channels_without_a_size_stay_and_none_goes_too_far() -> None:
    sizes = columns(c0=0.0, c1=np.inf, c2=np.nan, c3=1e-9, c4=1e-3)
    givers = np.ones(64)
    givers[4] = 0.0
    found = exponents(sizes, givers)
    assert found[:5].tolist() == [0, 0, 0, MOST, 0]
    assert not exponents(np.zeros(4), np.ones(4)).any()


def test_sizes_are_those_of_numpy_and_do_not_see_scaled_rows() -> None:
    random = np.random.default_rng(1)
    rows = random.standard_normal((40, 32)).astype(np.float32)
    np.testing.assert_allclose(row_norms(rows[:, None]), np.linalg.norm(rows.astype(np.float64), axis=1), rtol=1e-12)
    expected = ((rows / np.linalg.norm(rows, axis=1, keepdims=True)) ** 2).sum(axis=0)
    np.testing.assert_allclose(column_squares(rows), expected, rtol=1e-5)
    scaled = rows * np.exp(random.normal(0, 2, (40, 1))).astype(np.float32)
    np.testing.assert_allclose(column_squares(scaled), expected, rtol=1e-5)
    assert not column_squares(np.zeros((3, 8), np.float32)).any()
    assert not column_squares(np.full((3, 8), 1e-42, np.float32)).any()
