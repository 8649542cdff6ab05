"""int8 by output channel: nearest codes on a scale at which no pair of products leaves 16 bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from lfm2export.errors import TensorError
from lfm2export.quant import dequantize, quantize
from lfm2export.quant.blocks import signed, unsigned
from lfm2export.quant.channel import largest_sum
from lfm2export.weights import ChannelFormat

Floats = NDArray[np.float32]

matrices = st.tuples(st.integers(1, 4), st.integers(1, 40), st.sampled_from([1e-6, 1e-3, 1.0, 1e3])).flatmap(
    lambda drawn: arrays(
        np.float32,
        drawn[:2],
        elements=st.floats(-1, 1, width=32).map(lambda value, scale=drawn[2]: float(np.float32(value * scale))),
    )
)


def codes_of(weight: Floats) -> tuple[NDArray[np.int32], Floats]:
    """(codes around 0 [N, K], scales [N])."""
    found = quantize(weight, ChannelFormat().block(weight.shape[1]))
    assert found.zero_points is None
    return signed(found.codes).astype(np.int32), found.scales[:, 0].astype(np.float32)


def pairwise_saturated(activations: NDArray[np.int32], codes: NDArray[np.int32]) -> NDArray[np.int32]:
    """activations uint8 [M, K] by codes int8 [N, K] as processors without VNNI add them: pairs in 16 bits."""
    if codes.shape[1] % 2:
        activations, codes = (np.pad(matrix, ((0, 0), (0, 1))) for matrix in (activations, codes))
    products = activations[:, None, :] * codes[None]
    pairs = np.clip(products[..., 0::2] + products[..., 1::2], -(2**15), 2**15 - 1)
    return pairs.sum(axis=-1, dtype=np.int32)


@settings(max_examples=200, deadline=None)
@given(matrices, st.integers(0, 2**32 - 1))
def test_no_pair_of_products_saturates(weight: Floats, seed: int) -> None:
    codes, _ = codes_of(weight)
    random = np.random.default_rng(seed)
    activations = random.choice([1, 128, 254, 255], (3, weight.shape[1])).astype(np.int32)
    assert np.array_equal(pairwise_saturated(activations, codes), activations @ codes.T)


@settings(max_examples=200, deadline=None)
@given(matrices)
def test_codes_are_nearest_and_scales_at_most_twice_the_plain_ones(weight: Floats) -> None:
    codes, scales = codes_of(weight)
    assert np.abs(codes).max(initial=0) <= 127
    exact = np.divide(weight.astype(np.float64), scales[:, None], where=scales[:, None] > 0, out=np.zeros(weight.shape))
    assert (np.abs(codes - exact) <= 0.5 + 1e-4).all()
    plain = np.abs(weight).max(axis=1) / 127
    subnormal = 2.0**-24
    assert (scales <= 2 * plain * (1 + 2.0**-10) + subnormal).all()
    assert (scales >= plain * (1 - 1e-6)).all()


def test_the_plain_scale_would_saturate() -> None:
    """What the pairs are for: a row whose two largest weights are neighbours of one sign."""
    weight = np.array([[1.0, 1.0, 0.1, -0.2]], np.float32)
    plain = np.rint(weight * 127).astype(np.int32)
    activations = np.full((1, 4), 255, np.int32)
    assert not np.array_equal(pairwise_saturated(activations, plain), activations @ plain.T)
    codes, _ = codes_of(weight)
    assert codes[0, :2].tolist() == [63, 63]
    apart = np.array([[1.0, 0.1, 1.0, -0.2]], np.float32)  # 2i and 2i + 1 alone are a pair
    assert codes_of(apart)[0][0].tolist() == [115, 12, 115, -23]


def test_gaussian_rows_cost_a_third_of_the_scale() -> None:
    weight = np.random.default_rng(3).standard_normal((200, 1024), dtype=np.float32)
    ratio = largest_sum(weight) / np.abs(weight).max(axis=1)
    assert 1.2 < float(ratio.mean()) < 1.4


def test_rows_are_independent_and_damage_is_refused() -> None:
    weight = np.random.default_rng(1).standard_normal((7, 33), dtype=np.float32)
    format = ChannelFormat().block(33)
    whole = dequantize(quantize(weight, format), format, 33)
    parts = [dequantize(quantize(weight[i : i + 1], format), format, 33) for i in range(7)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert np.array_equal(dequantize(quantize(np.zeros((2, 5), np.float32), format), format, 5), np.zeros((2, 5)))
    for value in (np.nan, np.inf, -np.inf):
        weight[3, 4] = value
        with pytest.raises(TensorError, match="a weight is NaN or Inf"):
            quantize(weight, format)


def test_weights_beyond_every_float16_scale_are_limited_and_counted() -> None:
    weight = np.array([[1e9, -2.0], [3.0, 4.0]], np.float32)
    found = quantize(weight, ChannelFormat().block(2))
    assert (found.saturated, found.largest) == (1, 1e9)
    assert signed(found.codes)[0].tolist() == [127, 0]


@given(arrays(np.uint8, st.tuples(st.integers(1, 3), st.just(1), st.integers(1, 9))))
def test_signed_codes_are_the_unsigned_less_128(codes: NDArray[np.uint8]) -> None:
    assert np.array_equal(signed(codes), codes[:, 0].astype(np.int32) - 128)
    assert np.array_equal(unsigned(signed(codes)), codes)
