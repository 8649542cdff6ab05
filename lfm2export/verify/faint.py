"""A copy of a file's graph whose residual stream is faint, so that the epsilon of every norm counts.

A norm divides by sqrt(mean(x^2) + eps). Where x is about 1, eps 1e-6 for 1e-5 moves nothing by more than float32 rounds
over the layers, and no input makes x small in the last ones. So graph and reference both scale what feeds the residual
stream, and queries and keys before their norms: mean(x^2) is then about eps.

    embedding --- Mul --- first norm, first sum      y --- Mul --- out_proj, w2      q k v --- Mul([q, k, 1]) --- split

What is scaled by how much: `reference.run`. No weight is changed, so this copy too reads the file's own data.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from lfm2export.reference.run import FAINT, FAINT_PARTS
from lfm2export.spec import ModelSpec
from lfm2export.verify.stored import CAST, StoredWeights

#: The first reader of the embedding.
FIRST_NORM = "model.layers.0.operator_norm.weight"

#: Operators that multiply by a weight, which is their second input.
PRODUCTS = ("MatMul", "MatMulNBits", "Gemm")


def faint_copy(model: onnx.ModelProto, stored: StoredWeights, spec: ModelSpec) -> onnx.ModelProto | None:
    """The exact copy `model` with a faint residual stream; None where its names do not say what that takes."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    first = (FIRST_NORM, FIRST_NORM + CAST)
    embedding = next((node.input[0] for node in graph.node if not set(first).isdisjoint(node.input[1:])), None)
    wanted = {name for name in spec.source_tensors() if _scale(name) != 1}
    found: set[str] = set()
    nodes: list[NodeProto] = []

    def multiply(value: str, scale: NDArray[Any], result: str) -> None:
        name = f"{result}/scale"
        graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32), name))
        nodes.append(helper.make_node("Mul", [value, name], [result]))

    for node in graph.node:
        weight = stored.weights.get(node.input[1].removesuffix(CAST)) if node.op_type in PRODUCTS else None
        scales = [_scale(part) for part in weight.parts] if weight is not None else [1.0]
        if weight is not None and scales == [FAINT]:
            multiply(node.input[0], np.array(FAINT), f"{node.output[0]}/faint")
            node.input[0] = f"{node.output[0]}/faint"
        nodes.append(node)
        loud = None
        if embedding is not None and embedding in node.output:
            loud = (embedding, np.array(FAINT))
        elif weight is not None and scales != [FAINT] and set(scales) != {1.0}:
            loud = (node.output[0], np.append(np.repeat(scales, weight.rows), [1.0] * weight.padding))
        if weight is not None:
            found.update(wanted.intersection(weight.parts))
        if loud is not None:
            value, scale = loud
            node.output[list(node.output).index(value)] = f"{value}/loud"
            multiply(f"{value}/loud", scale, value)
    if found != wanted or embedding is None:
        return None
    del graph.node[:]
    graph.node.extend(nodes)
    return copy


def _scale(name: str) -> float:
    """What a faint run scales the weight of this name by."""
    return next((scale for part, scale in FAINT_PARTS.items() if name.endswith(f"{part}.weight")), 1.0)
