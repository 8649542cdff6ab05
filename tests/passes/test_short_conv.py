from __future__ import annotations

import numpy as np
import pytest

from graphs import SPEC, assert_same_numbers, edited, fire, numbers, operators, parse, recipes, with_spec
from lfm2export.passes import short_conv
from lfm2export.spec import CONV, FULL_ATTENTION
from lfm2export.weights import Recipe

#: One short convolution around its state, as traced; H 32, L 3. It may have a bias.
TEXT = """
convolve (float[B, S, 96] BCx, int64[B, 1] count, float[B, 32, 3] past_conv, float[32, 1, 3] kernel)
    => (float[B, S, 32] out, float[B, 32, 3] present_conv)
{
    zero = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    two = Constant <value_ints = [2]> ()
    end = Constant <value_ints = [9223372036854775807]> ()
    taps = Constant <value_ints = [3]> ()
    offsets = Constant <value_ints = [0, 1, 2]> ()
    by_channel = Constant <value_ints = [1, 32, 1]> ()
    transposed = Transpose <perm = [0, 2, 1]> (BCx)
    B, C, x = Split <axis = 1, num_outputs = 3> (transposed)
    Bx = Mul (B, x)
    window = Concat <axis = -1> (past_conv, Bx)
    ends = Add (count, offsets)
    ends_3 = Unsqueeze (ends, one)
    index = Expand (ends_3, by_channel)
    present_conv = GatherElements <axis = 2> (window, index)
    squeezed = Squeeze (kernel, one)
    depthwise = Unsqueeze (squeezed, one)
    convolved = Conv <group = 32, pads = [2, 2], kernel_shape = [3]> (window, depthwise)
    length = Shape <start = 1, end = 2> (BCx)
    before = Neg (length)
    stop = Add (length, taps)
    causal = Slice (convolved, zero, stop, two, one)
    y = Slice (causal, before, end, two, one)
    gated = Mul (C, y)
    out = Transpose <perm = [0, 2, 1]> (gated)
}
"""
WITH_BIAS = TEXT.replace("float[32, 1, 3] kernel)", "float[32, 1, 3] kernel, float[32] bias)").replace(
    "(window, depthwise)", "(window, depthwise, bias)"
)
L_CACHE_4 = (
    TEXT.replace("[B, 32, 3]", "[B, 32, 4]")
    .replace("[32, 1, 3]", "[32, 1, 4]")
    .replace("taps = Constant <value_ints = [3]>", "taps = Constant <value_ints = [4]>")
    .replace("[0, 1, 2]> ()\n    by", "[0, 1, 2, 3]> ()\n    by")
    .replace("pads = [2, 2], kernel_shape = [3]", "pads = [3, 3], kernel_shape = [4]")
)
VARIANTS = {
    "plain": (TEXT, ["kernel"], SPEC),
    "bias": (WITH_BIAS, ["kernel", "bias"], with_spec(conv_bias=True)),
    "L_cache 4": (L_CACHE_4, ["kernel"], with_spec(conv_L_cache=4)),
    "gated from the right": (TEXT.replace("Mul (C, y)", "Mul (y, C)"), ["kernel"], SPEC),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("length", [1, 2, 5])
def test_the_window_is_convolved_by_rows(variant: str, length: int) -> None:
    text, weights, spec = VARIANTS[variant]
    before, after = parse(text, weights), parse(text, weights)
    firing = fire(after, short_conv.fuse, spec)
    assert (firing.count, firing.refusals) == (1, [])
    count = operators(after)
    assert count["Transpose"] == 2 and count["Gather"] == count["ReduceSum"] == count["Split"] == count["Concat"] == 1
    assert not set(count) & {"Slice", "Conv"} and count["Unsqueeze"] == count["Squeeze"] == 1
    taps = spec.conv_L_cache
    assert recipes(after)["kernel.transposed"] == Recipe(("kernel",), (taps, 1, 32), transpose=True)
    rows = 2
    feeds = {
        "BCx": numbers("BCx", rows, length, 96),
        "count": np.array([[length], [max(length - 1, 0)]], np.int64),  # the second row ends earlier
        "past_conv": numbers("past_conv", rows, 32, taps),
    }
    assert_same_numbers(before, after, feeds, atol=2e-6)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("(past_conv, Bx)", "(held, Bx)", "the window does not start with a graph input"),
        ("(past_conv, Bx)", "(Bx, past_conv)", "the window does not start with a graph input"),
        ("pads = [2, 2]", "pads = [2, 0]", "the convolution is not padded by L - 1 on both sides"),
        ("pads = [2, 2]", "pads = [1, 1]", "the convolution is not padded by L - 1 on both sides"),
        ("Bx = Mul (B, x)", "Bx = Mul (B, held)", "B and x do not come from one projection"),
        ("Bx = Mul (B, x)", "Bx = Add (B, x)", "expected Mul before Bx, found Add"),
        ("(transposed)\n    Bx", "(past_conv)\n    Bx", "expected Transpose before past_conv, found a graph input"),
        ("gated = Mul (C, y)", "gated = Mul (B, y)", "the result is not gated by C"),
        ("gated = Mul (C, y)", "gated = Add (C, y)", "y is read by ['Add'], expected one Mul"),
        (
            "y = Slice (causal, before, end, two, one)",
            "y = Abs (causal)",
            "causal is read by ['Abs'], expected one Slice",
        ),
        (
            "out = Transpose <perm = [0, 2, 1]> (gated)",
            "out = Neg (gated)",
            "gated is read by ['Neg'], expected one Transpose",
        ),
        (
            "present_conv = GatherElements <axis = 2> (window, index)",
            "present_conv = Neg (past_conv)",
            "the window does not feed the next state",
        ),
        ("Squeeze (kernel, one)", "Squeeze (past_conv, one)", "past_conv is no weight"),
        ("Unsqueeze (ends, one)", "Unsqueeze (ends, two)", "the next state is not the same for every channel"),
        ("(window, depthwise)", "(Bx, depthwise)", "expected Concat before Bx, found Mul"),
    ],
)
def test_near_misses_are_refused(old: str, new: str, reason: str) -> None:
    text = edited(edited(TEXT, "    transposed = ", "    held = Neg (past_conv)\n    transposed = "), old, new)
    firing = short_conv.fuse(parse(text, ["kernel"]), SPEC)
    assert firing.count == 0 and len(firing.refusals) == 1
    assert firing.refusals[0].startswith("Conv convolved: ") and reason in firing.refusals[0]


def test_the_spec_decides_how_many_taps() -> None:
    firing = short_conv.fuse(parse(L_CACHE_4, ["kernel"]), SPEC)
    assert firing.count == 0 and "not padded by L - 1" in firing.refusals[0]


def test_expected() -> None:
    assert short_conv.expected(with_spec(layer_types=(CONV, FULL_ATTENTION, CONV))) == 2
