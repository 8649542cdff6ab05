"""RMSNorm: `Lfm2RMSNorm` becomes one SimplifiedLayerNormalization.

    x --+-- Pow(2) - ReduceMean(-1) - Add(eps) - Sqrt - Reciprocal --+
        +------------------------------------------------------ Mul --- Mul(weight) - y
                                      ->
    x, weight --- SimplifiedLayerNormalization(axis=-1, epsilon=eps) - y

Every norm fires: two a layer, query and key norm of each attention layer, and the final one. The operator computes in
float32 whatever its input is (stash_type 1), as the module does.
"""

from __future__ import annotations

import onnx_ir as ir

from lfm2export.passes.matching import (
    Builder,
    Firing,
    NoMatch,
    constant_array,
    expect,
    only_user,
    operands,
    recipe_of,
    rewrite,
    scalar,
)
from lfm2export.spec import ModelSpec


def expected(spec: ModelSpec) -> int:
    return 2 * spec.num_hidden_layers + 2 * len(spec.attention_layers) + 1


def fuse(model: ir.Model, spec: ModelSpec) -> Firing:
    def attempt(reciprocal: ir.Node, op: Builder) -> None:
        add = expect(expect(reciprocal.inputs[0], "Sqrt").inputs[0], "Add")
        mean, epsilon = operands(add, "ReduceMean")
        if constant_array(mean.inputs[1]).tolist() != [-1]:
            raise NoMatch("the mean is not over the last axis")
        power = expect(mean.inputs[0], "Pow")
        if scalar(power.inputs[1]) != 2.0:
            raise NoMatch("the power is not 2")
        x = power.inputs[0]
        normalized = only_user(reciprocal.outputs[0], "Mul")
        if x not in normalized.inputs:
            raise NoMatch("what is scaled is not what was measured")
        scaled = only_user(normalized.outputs[0], "Mul")
        weight = next((value for value in scaled.inputs if value is not normalized.outputs[0]), None)
        recipe_of(weight)
        y = op("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=scalar(epsilon), stash_type=1)
        op.replace(scaled.outputs[0], y)

    return rewrite(model, "Reciprocal", attempt)
