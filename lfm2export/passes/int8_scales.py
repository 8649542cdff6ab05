"""Where the scale of a token goes that a product of its codes lacks: u is the product y over s [M, 1], a token's own.

    u - Split -+- g - QuickGelu -+- Mul - w2            ->   u - Split -+- g - Mul(s) - QuickGelu -+- Mul - w2: s' s
               `- up ------------'                                      `- up ---------------------'

    u - Split -+- B -+- Mul - convolution               ->   u - Split -+- B -+- Mul - Mul(s s) - convolution
               +- x -'                                                  +- x -'
               `- C - Mul(convolved) - out_proj                         `- C - Mul(convolved) - out_proj: s' s

    u - Split - query and key, value                    ->   u - Mul(s) - Split - query and key, value

What reads `up` or C next is rounded again, each token on its own scale s', which takes a factor of the token as it
comes: the codes are the same, and the factor is owed to that product's result. So up, which is half of an FFN's
columns, and C are never multiplied by it, and nothing that stays (the convolution's state, keys, values, the residual)
misses it.
Letters: M tokens, N columns of a product.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from lfm2export.passes.matching import Builder, NoMatch, constant_array, only_user
from lfm2export.weights import RECIPE


@dataclass(frozen=True)
class Weights:
    """A matrix in the graph: codes int8 [K, N], scales float32 [N], of which the last `padding` columns are zeros;
    `rows` is how many are not."""

    codes: ir.Value
    scales: ir.Value
    rows: int
    padding: int = 0


@dataclass(frozen=True)
class Sums:
    """A product without its tokens' scales: values [M, N] float32, scale [M, 1], leading int64 [2] = (B, S)."""

    values: ir.Value
    scale: ir.Value
    leading: ir.Value
    weights: Weights

    def product(self, op: Builder) -> ir.Value:
        """y [B, S, rows]."""
        values = self.values
        if self.weights.padding:
            values = op("Slice", values, op.constant([0]), op.constant([self.weights.rows]), op.constant([1]))
        return self.by_row(op, op("Mul", values, self.scale), self.weights.rows)

    def by_row(self, op: Builder, value: ir.Value, width: int) -> ir.Value:
        """value [M, width] -> [B, S, width]."""
        return op("Reshape", value, op("Concat", self.leading, op.constant([width]), axis=0))

    def parts(self, op: Builder, value: ir.Value, split: ir.Node) -> tuple[ir.Value, ...]:
        """`value` [..., N] in the parts of `split`, without the padding."""
        sizes = _sizes(split, self.weights.rows)
        cut = [*sizes, self.weights.padding] if self.weights.padding else sizes
        return tuple(op.many("Split", [value, op.constant(cut)], len(cut), axis=-1)[: len(sizes)])

    @property
    def width(self) -> int:
        """N."""
        return self.weights.rows + self.weights.padding


def is_flat(value: ir.Value | None) -> bool:
    """Whether it is [M, K] by its shape; one of no known shape is [B, S, K]."""
    return value is not None and value.shape is not None and len(value.shape) == 2


def only_split(value: ir.Value) -> ir.Node | None:
    """The Split of the last axis that alone reads `value`."""
    try:
        split = only_user(value, "Split")
    except NoMatch:
        return None
    return split if split.attributes["axis"].as_int() in (-1, 2) else None


def scale_parts(op: Builder, sums: Sums, split: ir.Node) -> dict[ir.Node, Sums]:
    """The parts of `split`, read as it was read; which products owe whose scale to their results."""
    for attempt in (_gate, _convolution):
        try:
            return attempt(op, sums, split)
        except NoMatch:
            continue
    product = sums.by_row(op, op("Mul", sums.values, sums.scale), sums.width)
    for old, new in zip(split.outputs, sums.parts(op, product, split), strict=True):
        op.replace(old, new)
    return {}


def _gate(op: Builder, sums: Sums, split: ir.Node) -> dict[ir.Node, Sums]:
    gate, up = _outputs(split, 2)
    gelu = only_user(gate, "QuickGelu").outputs[0]
    hidden = only_user(gelu, "Mul")
    if only_user(up, "Mul") is not hidden:
        raise NoMatch("what the gate opens is not the other part")
    down = _product(hidden.outputs[0])
    new_gate, new_up = sums.parts(op, sums.values, split)
    op.replace(gate, op("Mul", new_gate, sums.scale))
    op.replace(up, new_up)
    for value in (gelu, hidden.outputs[0]):
        value.shape = ir.Shape([None, sums.weights.rows // 2])
    return {down: sums}


def _convolution(op: Builder, sums: Sums, split: ir.Node) -> dict[ir.Node, Sums]:
    b, c, x = _outputs(split, 3)
    gated = only_user(b, "Mul")
    if only_user(x, "Mul") is not gated:
        raise NoMatch("B and x are not multiplied")
    new_b, new_c, new_x = sums.parts(op, sums.by_row(op, sums.values, sums.width), split)
    square = sums.by_row(op, op("Mul", sums.scale, sums.scale), 1)
    op.replace(gated.outputs[0], op("Mul", op("Mul", new_b, new_x), square))
    try:
        out = _product(only_user(c, "Mul").outputs[0])
    except NoMatch:  # of the last layer, only the last tokens go on
        op.replace(c, op("Mul", new_c, sums.by_row(op, sums.scale, 1)))
        return {}
    op.replace(c, new_c)
    return {out: sums}


def _outputs(split: ir.Node, count: int) -> tuple[ir.Value, ...]:
    if len(split.outputs) != count:
        raise NoMatch(f"it has {len(split.outputs)} parts, expected {count}")
    return tuple(split.outputs)


def _product(value: ir.Value) -> ir.Node:
    """The product with a weight that alone reads `value`."""
    matmul = only_user(value, "MatMul")
    weight = matmul.inputs[1]
    if matmul.inputs[0] is not value or weight is None or RECIPE not in weight.meta:
        raise NoMatch("it is not multiplied by a weight")
    return matmul


def _sizes(split: ir.Node, whole: int) -> list[int]:
    if len(split.inputs) > 1:
        return [int(size) for size in constant_array(split.inputs[1])]
    return [whole // len(split.outputs)] * len(split.outputs)
