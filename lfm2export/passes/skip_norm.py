"""Skip-RMSNorm: a residual addition and the norm that reads it become one operator with both results.

    x, skip - Add -+- sum (read again as the next residual)        ->     x, skip, weight
                   +- SimplifiedLayerNormalization - y                    --- SkipSimplifiedLayerNormalization - y, , ,
                   sum

Twice a layer: every norm of the hidden state but the first, which reads the embedding. Where the output projection of
a short convolution has a bias, the operator adds that too.
"""

from __future__ import annotations

import onnx_ir as ir

from lfm2export.contract import MICROSOFT
from lfm2export.passes.matching import Builder, Firing, expect, rewrite
from lfm2export.spec import ModelSpec
from lfm2export.weights import RECIPE


def expected(spec: ModelSpec) -> int:
    return 2 * spec.num_hidden_layers


def fuse(model: ir.Model, spec: ModelSpec) -> Firing:
    def attempt(norm: ir.Node, op: Builder) -> None:
        add = expect(norm.inputs[0], "Add")
        (x, bias), (skip, other) = (_without_bias(value) for value in add.inputs)
        y, _, _, total = op.many(
            "SkipSimplifiedLayerNormalization",
            [x, skip, norm.inputs[1], *filter(None, (bias, other))],
            4,
            domain=MICROSOFT,
            names=[None, "", ""],
            epsilon=norm.attributes["epsilon"].as_float(),
        )
        op.replace(norm.outputs[0], y)
        op.replace(add.outputs[0], total)

    return rewrite(model, "SimplifiedLayerNormalization", attempt)


def _without_bias(value: ir.Value | None) -> tuple[ir.Value | None, ir.Value | None]:
    """(what a bias was added to, the bias), of a value that nobody else reads; (value, None) where there is none."""
    add = value.producer() if value is not None and len(value.uses()) == 1 else None
    if add is not None and add.op_type == "Add":
        for bias, rest in (add.inputs, add.inputs[::-1]):
            if bias is not None and RECIPE in bias.meta:
                return rest, bias
    return value, None
