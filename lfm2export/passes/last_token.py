"""Next-token logits early: with `--logits last`, only each row's last token goes through the end of the last layer.

    y - out_proj - SkipNorm(residual) - FFN - SkipNorm - GatherElements(last) - head
                                      ->
    y - GatherElements(last) - out_proj - SkipNorm(GatherElements(residual, last)) - FFN - SkipNorm - head

Once. The last layer needs all tokens for its caches alone; its output projection and FFN, about a sixteenth of the
prefill of a model of 16 layers, run on one token a row.
"""

from __future__ import annotations

import onnx_ir as ir

from lfm2export.passes.matching import Builder, Firing, NoMatch, expect, rewrite
from lfm2export.spec import ModelSpec

#: Operators of which every token's output depends on that token's inputs alone.
TOKENWISE = ("SkipSimplifiedLayerNormalization", "MatMul", "Mul", "Sigmoid", "Add")


def expected(spec: ModelSpec) -> int:
    return 1


def fuse(model: ir.Model, spec: ModelSpec) -> Firing:
    logits = model.graph.outputs[0]

    def attempt(gather: ir.Node, op: Builder) -> None:
        if not _reaches(gather, logits):
            raise NoMatch("it does not lead to the logits")
        final = expect(gather.inputs[0], "SkipSimplifiedLayerNormalization")
        index = expect(expect(gather.inputs[1], "Expand").inputs[0], "Unsqueeze").outputs[0]
        middle = next(
            (p for v in final.inputs if v and (p := v.producer()) and p.op_type == final.op_type), None
        )
        if middle is None:
            raise NoMatch("no second norm in the last layer")
        moved: dict[ir.Value, ir.Value] = {}
        for node in _between(middle, final):
            for number, value in enumerate(node.inputs):
                producer = value.producer() if value is not None else None
                if value is None or value in moved or producer is None:
                    continue
                if _tokenwise_after(producer, middle):
                    continue
                source = producer.inputs[0] if node is middle and producer.op_type == "MatMul" else value
                if source is not value and source is not None:  # the output projection moves behind the gather as well
                    moved[value] = op("MatMul", _last(op, source, index), producer.inputs[1])
                else:
                    moved[value] = _last(op, value, index)
                node.replace_input_with(number, moved[value])
        op.replace(gather.outputs[0], final.outputs[0])

    return rewrite(model, "GatherElements", attempt)
