from __future__ import annotations

import numpy as np

from graphs import SPEC, Checkpoint, edited, evaluate, fire, numbers, operators, parse, with_spec
from lfm2export.passes import silu
from lfm2export.spec import CONV, FULL_ATTENTION

TEXT = """
gated (float16[B, S, 8] gate, float16[B, S, 8] up) => (float16[B, S, 8] y)
{
    silu = com.microsoft.QuickGelu <alpha = 1.0> (gate)
    y = Mul (silu, up)
}
"""
FEEDS = {name: (4 * numbers(name, 2, 3, 8)).astype(np.float16) for name in ("gate", "up")}


def test_the_gate_is_two_operators_of_the_same_numbers() -> None:
    before, after = parse(TEXT), parse(TEXT)
    firing = fire(after, silu.fuse)
    assert (firing.count, firing.refusals) == (1, [])
    assert operators(after) == {"Sigmoid": 1, "Mul": 2}
    expected, got = (evaluate(model, FEEDS, Checkpoint({}))["y"] for model in (before, after))
    assert got.dtype == np.float16
    # Three roundings of 2**-11 each, of values up to 100.
    np.testing.assert_allclose(got.astype(np.float32), expected.astype(np.float32), rtol=2e-3, atol=2e-3)


def test_another_alpha_is_refused() -> None:
    for alpha in ("alpha = 1.702", None):
        text = edited(TEXT, "<alpha = 1.0> ", f"<{alpha}> " if alpha else "")
        firing = silu.fuse(parse(text), SPEC)
        assert firing.count == 0
        assert firing.refusals == ["QuickGelu silu: alpha is 1.702, expected 1"]


def test_expected() -> None:
    assert silu.expected(with_spec(layer_types=(CONV, FULL_ATTENTION, CONV))) == 3
