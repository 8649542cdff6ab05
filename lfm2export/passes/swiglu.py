"""SwiGLU: the gate's SiLU becomes one com.microsoft QuickGelu, which is x * sigmoid(alpha * x), with alpha 1.

    g - Sigmoid -+                                    g - QuickGelu(alpha=1) - Mul(up)
    g ---------- Mul - Mul(up)            ->

Once a layer. onnxruntime makes the same of it while loading, but only for some providers and optimization levels.
"""

from __future__ import annotations

import onnx_ir as ir

from lfm2export.contract import MICROSOFT
from lfm2export.passes.matching import Builder, Firing, NoMatch, only_user, rewrite
from lfm2export.spec import ModelSpec


def expected(spec: ModelSpec) -> int:
    return spec.num_hidden_layers


def fuse(model: ir.Model, spec: ModelSpec) -> Firing:
    def attempt(sigmoid: ir.Node, op: Builder) -> None:
        gate = sigmoid.inputs[0]
        silu = only_user(sigmoid.outputs[0], "Mul")
        if gate is None or gate not in silu.inputs:
            raise NoMatch("what the sigmoid multiplies is not its own input")
        op.replace(silu.outputs[0], op("QuickGelu", gate, domain=MICROSOFT, alpha=1.0))

    return rewrite(model, "Sigmoid", attempt)
