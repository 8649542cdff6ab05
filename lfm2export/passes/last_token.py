"""Next-token logits early: with `--logits last`, only the tokens that get logits go through the end of the last layer.

    y - out_proj - SkipNorm(residual) - FFN - SkipNorm - GatherElements(last) - head
                                      ->
    y - GatherElements(last) - out_proj - SkipNorm(GatherElements(residual, last)) - FFN - SkipNorm - head

Once. The last layer needs all tokens for its caches alone; its output projection and FFN, about a sixteenth of the
prefill of a model of 16 layers, run on one token a row, or on those that `logits_from_end` names.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lfm2export.contract import LAST_TOKEN, LOGITS_FROM_END
from lfm2export.passes.matching import Builder, Firing, NoMatch, expect, operands, recipe_of, rewrite
from lfm2export.spec import ModelSpec


def expected(spec: ModelSpec) -> int:
    return 1


def fuse(model: ir.Model, spec: ModelSpec) -> Firing:
    def attempt(gather: ir.Node, op: Builder) -> None:
        final = expect(gather.inputs[0], "SkipSimplifiedLayerNormalization")
        if final.outputs[0] is not gather.inputs[0]:
            raise NoMatch("it does not gather the norm's result")
        middle, _ = operands(final, final.op_type)
        index = expect(expect(gather.inputs[1], "Expand").inputs[0], "Unsqueeze").outputs[0]
        place = next((i for i in (0, 1) if _projection(middle.inputs[i]) is not None), None)
        if place is None:
            raise NoMatch("the last layer's output projection is not found")
        projection = _projection(middle.inputs[place])
        assert projection is not None
        early = Builder(model.graph, projection)
        width = recipe_of(projection.inputs[1]).shape[0]
        projection.replace_input_with(0, _last(early, projection.inputs[0], index, width))
        middle.replace_input_with(1 - place, _last(early, middle.inputs[1 - place], index, spec.hidden_size))
        op.replace(gather.outputs[0], final.outputs[0])

    return rewrite(model, "GatherElements", attempt)


def give_default(model: ir.Model) -> None:
    """Make the input `logits_from_end`, where there is one, an initializer too: whoever feeds nothing gets the last
    token's logits. After all passes, for those that fold, merge and name constants would take it for one.
    """
    for value in model.graph.inputs:
        if value.name == LOGITS_FROM_END:
            value.const_value = ir.tensor(np.array(LAST_TOKEN, np.int64), name=value.name)
            model.graph.initializers.add(value)


def _projection(value: ir.Value | None) -> ir.Node | None:
    """The layer's output projection if it makes `value`."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "MatMul":
        return None
    return node if recipe_of(node.inputs[1]).parts[0].endswith(".out_proj.weight") else None


def _last(op: Builder, value: ir.Value | None, index: ir.Value, width: int) -> ir.Value:
    """value [B, S, width], index [B, R, 1] -> [B, R, width]."""
    return op("GatherElements", value, op("Expand", index, op.constant([1, 1, width])), axis=1)
