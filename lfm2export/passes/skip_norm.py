"""Skip-RMSNorm: a residual addition and the norm that reads it become one operator with both results.

    x, skip - Add -+- sum (read again as the next residual)        ->     x, skip, weight
                   +- SimplifiedLayerNormalization - y                    --- SkipSimplifiedLayerNormalization - y, , ,
                   sum

Twice a layer: every norm of the hidden state but the first, which reads the embedding.
"""

from __future__ import annotations

import onnx_ir as ir

from lfm2export.contract import MICROSOFT
from lfm2export.passes.matching import Builder, Firing, expect, rewrite
from lfm2export.spec import ModelSpec


def expected(spec: ModelSpec) -> int:
    return 2 * spec.num_hidden_layers


def fuse(model: ir.Model, spec: ModelSpec) -> Firing:
    def attempt(norm: ir.Node, op: Builder) -> None:
        add = expect(norm.inputs[0], "Add")
        y, _, _, total = op.many(
            "SkipSimplifiedLayerNormalization",
            [add.inputs[0], add.inputs[1], norm.inputs[1]],
            4,
            domain=MICROSOFT,
            names=[None, "", ""],
            epsilon=norm.attributes["epsilon"].as_float(),
        )
        op.replace(norm.outputs[0], y)
        op.replace(add.outputs[0], total)

    return rewrite(model, "SimplifiedLayerNormalization", attempt)
