from __future__ import annotations

import numpy as np
import pytest

from graphs import SPEC, Checkpoint, assert_same_numbers, edited, evaluate, fire, numbers, operators, parse, with_spec
from lfm2export.passes import swiglu
from lfm2export.spec import CONV, FULL_ATTENTION

#: The gate of two layers, the second with its operands exchanged.
TEXT = """
gated (float[B, S, 8] gate, float[B, S, 8] up) => (float[B, S, 8] y, float[B, S, 8] z)
{
    sigmoid = Sigmoid (gate)
    silu = Mul (gate, sigmoid)
    y = Mul (silu, up)
    sigmoid_2 = Sigmoid (up)
    silu_2 = Mul (sigmoid_2, up)
    z = Mul (gate, silu_2)
}
"""
FEEDS = {"gate": 4 * numbers("gate", 2, 3, 8), "up": 4 * numbers("up", 2, 3, 8)}


def test_the_gate_is_one_operator() -> None:
    before, after = parse(TEXT), parse(TEXT)
    firing = fire(after, swiglu.fuse)
    assert (firing.count, firing.refusals) == (2, [])
    assert operators(after) == {"QuickGelu": 2, "Mul": 2}
    for node in after.graph:
        if node.op_type == "QuickGelu":
            assert node.domain == "com.microsoft" and node.attributes["alpha"].as_float() == 1.0
    assert_same_numbers(before, after, FEEDS, atol=5e-6)


def test_the_operator_takes_float16_too() -> None:
    after = parse(TEXT.replace("float[", "float16["))
    fire(after, swiglu.fuse)
    expected = evaluate(parse(TEXT), FEEDS, Checkpoint({}))
    got = evaluate(after, {name: values.astype(np.float16) for name, values in FEEDS.items()}, Checkpoint({}))
    for name, values in expected.items():  # three roundings of 2**-11 of values up to 100
        np.testing.assert_allclose(got[name].astype(np.float32), values, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("silu = Mul (gate, sigmoid)", "silu = Mul (up, sigmoid)", "what the sigmoid multiplies is not its own input"),
        ("silu = Mul (gate, sigmoid)", "silu = Add (gate, sigmoid)", "sigmoid is read by ['Add'], expected one Mul"),
        (
            "silu = Mul (gate, sigmoid)",
            "other = Neg (sigmoid)\n    silu = Mul (gate, sigmoid)",
            "expected one Mul",
        ),
    ],
)
def test_near_misses_are_refused(old: str, new: str, reason: str) -> None:
    model = parse(edited(TEXT, old, new))
    firing = swiglu.fuse(model, SPEC)
    assert firing.count == 1 and len(firing.refusals) == 1
    assert firing.refusals[0].startswith("Sigmoid sigmoid: ") and reason in firing.refusals[0]


def test_expected() -> None:
    assert swiglu.expected(with_spec(layer_types=(CONV, FULL_ATTENTION, CONV))) == 3
