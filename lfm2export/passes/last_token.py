"""Next-token logits early: with `--logits last`, only each row's last token goes through the end of the last layer.

    y - out_proj - SkipNorm(residual) - FFN - SkipNorm - GatherElements(last) - head
                                      ->
    y - GatherElements(last) - out_proj - SkipNorm(GatherElements(residual, last)) - FFN - SkipNorm - head

Once. The last layer needs all tokens for its caches alone; its output projection and FFN, about a sixteenth of the
prefill of a model of 16 layers, run on one token a row.
"""

from __future__ import annotations

import onnx_ir as ir

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


def _projection(value: ir.Value | None) -> ir.Node | None:
    """The layer's output projection if it makes `value`."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "MatMul":
        return None
    return node if recipe_of(node.inputs[1]).parts[0].endswith(".out_proj.weight") else None


def _last(op: Builder, value: ir.Value | None, index: ir.Value, width: int) -> ir.Value:
    """value [B, S, width], index [B, 1, 1] -> [B, 1, width]."""
    return op("GatherElements", value, op("Expand", index, op.constant([1, 1, width])), axis=1)
