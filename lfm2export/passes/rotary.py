"""Rotary embedding: `apply_rotary_pos_emb` becomes com.microsoft RotaryEmbedding, without a table of positions.

    positions - Unsqueeze - Cast - angles [B, S, D/2] - Concat(angles, angles) -+- Cos - Unsqueeze - cos
                                                                                +- Sin - Unsqueeze - sin
    x [B, N, S, D] --- x * cos + Concat(-x[D/2:], x[:D/2]) * sin --- y
                                      ->
    positions - Reshape [B*S, 1] - Cast - angles [B*S, D/2] - into [-pi, pi] -+- Sin - sin rows
                                                                              +- Cos - cos rows
    x, places 0 .. B*S-1 as [B, S], cos rows, sin rows --- RotaryEmbedding --- y

Twice an attention layer: query and key; the rows are computed once a step. A stored table for 128,000 positions would
be 33 MB, as much as a fifth of the 350M's 4-bit file.

The angles are rounded to float32 exactly as transformers rounds them, and then brought into [-pi, pi] by subtracting
turns in two parts (Cody and Waite, "Software Manual for the Elementary Functions", 1980): a GPU's own sine loses its
digits at angles of thousands of radians. The first part of a turn has 8 bits, so that its product with up to
2**16 turns is exact; what the second loses is below 2.2e-6 radians at position 131,072 and below 2e-7 at 4,096.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from lfm2export.contract import MICROSOFT
from lfm2export.passes.matching import (
    Builder,
    Firing,
    NoMatch,
    constant_array,
    expect,
    only_user,
    operands,
    require,
    require_ints,
    rewrite,
    slice_bounds,
)
from lfm2export.spec import ModelSpec

#: 2 pi cut to 8 bits.
TURN_HEAD = 6.28125


def expected(spec: ModelSpec) -> int:
    return 2 * len(spec.attention_layers)


def fuse(model: ir.Model, spec: ModelSpec) -> Firing:
    tables: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}

    def attempt(negate: ir.Node, op: Builder) -> None:
        upper = expect(negate.inputs[0], "Slice")
        x = upper.inputs[0]
        half = spec.head_dim // 2
        rotated = only_user(negate.outputs[0], "Concat")
        lower = expect(rotated.inputs[1], "Slice")
        if rotated.inputs[0] is not negate.outputs[0] or lower.inputs[0] is not x:
            raise NoMatch("the halves are not exchanged")
        require_ints(rotated, axis=[-1])
        start, end, axis = slice_bounds(upper)
        is_upper = (start, axis) == (half, 3) and end >= spec.head_dim
        is_lower = slice_bounds(lower) == (0, half, 3)
        require(is_upper and is_lower, f"the halves are not cut at {half} of the last axis")
        sine_part = only_user(rotated.outputs[0], "Mul")
        total = only_user(sine_part.outputs[0], "Add")
        cosine_part = next(v for v in total.inputs if v is not sine_part.outputs[0])
        cosine, straight = operands(expect(cosine_part, "Mul"), "Unsqueeze")
        sine, _ = operands(sine_part, "Unsqueeze")
        if straight is not x:
            raise NoMatch("cosine and sine parts do not rotate the same value")
        angles = _angles(cosine, "Cos")
        if _angles(sine, "Sin") is not angles:
            raise NoMatch("cosine and sine are of different angles")
        if angles not in tables:
            tables[angles] = _tables(op, angles, half)
        places, cos_rows, sin_rows = tables[angles]
        y = op("RotaryEmbedding", x, places, cos_rows, sin_rows, domain=MICROSOFT, interleaved=0)
        op.replace(total.outputs[0], y)

    return rewrite(model, "Neg", attempt)


def _angles(unsqueeze: ir.Node, function: str) -> ir.Value:
    """The [B, S, D/2] angles below Unsqueeze(function(Concat(angles, angles)))."""
    require(constant_array(unsqueeze.inputs[1]).tolist() == [1], "cosine or sine is not the same for every head")
    concat = expect(expect(unsqueeze.inputs[0], function).inputs[0], "Concat")
    require_ints(concat, axis=[-1])
    angles, again = concat.inputs
    if angles is None or angles is not again:
        raise NoMatch("the angles are not doubled")
    return angles


def _tables(op: Builder, angles: ir.Value, half: int) -> tuple[ir.Value, ir.Value, ir.Value]:
    """(places [B, S], cos rows [B*S, D/2], sin rows [B*S, D/2]): one row for every token of the step."""
    product = expect(angles, "Mul")
    positions = expect(expect(product.inputs[0], "Cast").inputs[0], "Unsqueeze").inputs[0]
    column = op("Cast", op("Reshape", positions, op.constant([-1, 1])), to=ir.DataType.FLOAT)
    reduced = _reduced(op, op("Mul", column, product.inputs[1]))
    sin_rows, cos_rows = op("Sin", reduced), op("Cos", reduced)
    steps = op("Range", op.scalar_int(0), op("Size", positions), op.scalar_int(1))
    places = op("Reshape", steps, op("Shape", positions))
    return places, cos_rows, sin_rows


def _reduced(op: Builder, angle: ir.Value) -> ir.Value:
    """`angle` less the whole turns in it: within [-pi, pi] up to rounding."""

    def number(value: float) -> ir.Value:
        return op.constant(np.array(value, dtype=np.float32))

    turns = op("Floor", op("Add", op("Mul", angle, number(0.5 / math.pi)), number(0.5)))
    coarse = op("Sub", angle, op("Mul", turns, number(TURN_HEAD)))
    return op("Sub", coarse, op("Mul", turns, number(2 * math.pi - TURN_HEAD)))
