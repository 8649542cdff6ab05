"""float16: weights, activations and caches are halved; what needs the range or the precision stays float32.

    past, weights, ones float32                       past, weights, ones float16
    rotary rows float32                       ->      rotary rows float32 - Cast(float16)
    logits float32                                    logits float16 - Cast(float32) - logits

Norms (stash_type 1) and attention's softmax compute in float32 inside their operators; the rotary rows are computed in
float32 and rounded once. Fires once for every cache input and rotary row, and for the logits.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from lfm2export.passes.matching import Builder, Firing, constant_array
from lfm2export.spec import ModelSpec
from lfm2export.weights import RECIPE, Recipe

HALF = ir.DataType.FLOAT16


def expected(spec: ModelSpec) -> int:
    """The caches, cosine and sine where there is attention, and the logits."""
    return len(spec.conv_layers) + 2 * len(spec.attention_layers) + (2 if spec.attention_layers else 0) + 1


def fuse(model: ir.Model, spec: ModelSpec) -> Firing:
    graph = model.graph
    firing = Firing()
    for value in graph.initializers.values():
        if RECIPE in value.meta:
            recipe: Recipe = value.meta[RECIPE]
            value.meta[RECIPE] = replace(recipe, dtype="FLOAT16")
            value.type = ir.TensorType(HALF)
    for value in graph.inputs:
        if value.dtype == ir.DataType.FLOAT:
            value.type = ir.TensorType(HALF)
            firing.count += 1
    for value in graph.outputs[1:]:
        value.type = ir.TensorType(HALF)
    rows: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        if node.op_type == "RotaryEmbedding":
            for number, table in enumerate(node.inputs[2:], start=2):
                assert table is not None
                if table not in rows:
                    rows[table] = Builder(graph, node)("Cast", table, to=HALF)
                    firing.count += 1
                node.replace_input_with(number, rows[table])
        elif node.op_type == "SimplifiedLayerNormalization" and RECIPE not in node.inputs[1].meta:  # type: ignore[union-attr]
            ones = Builder(graph, node).constant(constant_array(node.inputs[1]).astype(np.float16))
            node.replace_input_with(1, ones)
    _float_logits(graph)
    firing.count += 1
    return firing


def _float_logits(graph: ir.Graph) -> None:
    """Logits are float32 for every dtype: samplers and Transformers.js read them so."""
    logits = graph.outputs[0]
    producer = logits.producer()
    assert producer is not None
    half = ir.Value(name="logits.half", type=ir.TensorType(HALF))
    twin = ir.node(
        producer.op_type,
        producer.inputs,
        attributes={name: attribute.value for name, attribute in producer.attributes.items()},
        domain=producer.domain,
        outputs=[half],
        metadata_props=producer.metadata_props,
    )
    graph.insert_before(producer, twin)
    op = Builder(graph, producer)
    op.replace(logits, op("Cast", half, to=ir.DataType.FLOAT))
