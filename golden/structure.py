"""The structure of a graph as one digest that names do not change, and its operators counted."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import onnx
from onnx import helper


def structure(path: Path) -> dict[str, Any]:
    """What the ONNX file at `path` is made of, its weights left out.

    digest: sha256 of every node in order (operator, attributes, which node made each input), and of name, type and
    shape of inputs, outputs and initializers as they are used. Two graphs that differ in inner names alone are equal.
    """
    model = onnx.load(str(path), load_external_data=False)
    counts: dict[str, int] = {}
    for node in model.graph.node:
        name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        counts[name] = counts.get(name, 0) + 1
    return {
        "digest": hashlib.sha256("\n".join(_lines(model)).encode()).hexdigest(),
        "nodes": len(model.graph.node),
        "op_counts": dict(sorted(counts.items())),
        "opsets": {opset.domain or "ai.onnx": opset.version for opset in sorted(model.opset_import, key=_domain)},
        "ir_version": model.ir_version,
    }


def _lines(model: onnx.ModelProto) -> list[str]:
    graph = model.graph
    called = {"": "-"}
    for tensor in graph.initializer:
        called[tensor.name] = f"{tensor.data_type}{list(tensor.dims)}{_small_value(tensor)}"
    lines = []
    for value in graph.input:
        called[value.name] = value.name
        lines.append(f"in {_typed(value)}")
    for number, node in enumerate(graph.node):
        attributes = sorted(f"{attribute.name}={_value(attribute)}" for attribute in node.attribute)
        made = [called[name] for name in node.input]
        lines.append(f"{node.domain}.{node.op_type} {made} {attributes} -> {len(node.output)}")
        called |= {name: f"{number}.{place}" for place, name in enumerate(node.output) if name}
    return lines + [f"out {_typed(value)} = {called[value.name]}" for value in graph.output]


def _small_value(tensor: onnx.TensorProto) -> str:
    """The value of a constant that steers the graph, such as a shape or an axis; a weight counts by its shape."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.ByteSize() > 512:
        return ""
    return str(onnx.numpy_helper.to_array(tensor).tolist())


def _value(attribute: onnx.AttributeProto) -> str:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return f"{value.data_type}{list(value.dims)}{_small_value(value)}"
    return str(value)


def _typed(value: onnx.ValueInfoProto) -> str:
    held = value.type.tensor_type
    axes = [axis.dim_param or axis.dim_value for axis in held.shape.dim]
    return f"{value.name} {held.elem_type} {axes}"


def _domain(opset: onnx.OperatorSetIdProto) -> str:
    return str(opset.domain)
