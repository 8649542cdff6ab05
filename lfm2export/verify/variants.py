"""Copies of a file's graph that prove something: in float32 without rounding, or with the logits of every position.

Only the graph is copied; a session on it reads the file's own data. What a copy changes is named here and nothing else:

exact          MatMulNBits at accuracy_level 4 rounds activations to 8 bits: level 0, float32 (where 8 bits are fast as
               twice 4 alone: `verify.nibbles`).
               MatMulIntegerToFloat of activations rounded token by token: a float32 product (`verify.int8`).
               int8 keys and values are floats (`verify.kv_cache`), unless they are what is looked at.
               float16 inputs, outputs, casts and constants become float32; a float16 weight is cast where it is read.
all positions  GatherElements(x, Expand(index, [1, 1, width])), the last tokens of each row, becomes x.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from lfm2export import contract
from lfm2export.artifact import resolve_data
from lfm2export.errors import ArtifactError
from lfm2export.untrusted.onnx_file import read_model
from lfm2export.untrusted.paths import shown
from lfm2export.verify.int8 import ROUNDED, exact_products
from lfm2export.verify.kv_cache import float_caches, has_int8_caches
from lfm2export.verify.stored import CAST

#: Inputs that the operators which are looked into take at least.
INPUTS = {
    "MatMulNBits": 3,
    "MatMul": 2,
    "Gemm": 2,
    "GatherElements": 2,
    "Expand": 2,
    "Cast": 1,
    "QuantizeLinear": 3,
    "MatMulIntegerToFloat": 5,
    "Mul": 2,
    "Transpose": 1,
    "Unsqueeze": 2,
}


def open_graph(path: Path, folder: Path) -> onnx.ModelProto:
    """The graph at `path` in the artifact `folder`, for what is made of it here; external data stays where it is.

    Raises:
        ArtifactError: it is no ONNX model, its data is missing or elsewhere, a node has fewer inputs than its operator
            takes, or the logits are no tensor [B, S, V].
    """
    resolve_data(path, folder)
    model = read_model(path)
    for node in model.graph.node:
        least = INPUTS.get(node.op_type, 0)
        if len(node.input) < least or not node.output:
            raise ArtifactError(
                f"{path}: a node {shown(node.op_type)} has {len(node.input)} inputs and {len(node.output)} outputs, "
                f"expected at least {least} and 1; build it again"
            )
    ranks = [len(value.type.tensor_type.shape.dim) for value in model.graph.output if value.name == contract.LOGITS]
    if ranks != [3]:
        raise ArtifactError(f"{path} has no output {contract.LOGITS} of 3 axes; build it again, or give an LFM2 export")
    return model


def is_exact(model: onnx.ModelProto) -> bool:
    """Whether the file computes in float32 throughout, so that it is its own exact copy."""
    held = [value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)]
    rounded = any(node.op_type in ROUNDED for node in model.graph.node)
    return TensorProto.FLOAT16 not in held and not rounded and not has_int8_caches(model)


def exact_copy(model: onnx.ModelProto, *, int8_caches: bool = False) -> onnx.ModelProto:
    """The same graph on the same weights, in float32 from end to end; int8_caches: but for those, where it has them."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.value_info[:]
    renamed: dict[str, str] = {}
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            renamed[tensor.name] = tensor.name + CAST
            casts.append(helper.make_node("Cast", [tensor.name], [renamed[tensor.name]], to=TensorProto.FLOAT))
    for node in graph.node:
        for number, name in enumerate(node.input):
            node.input[number] = renamed.get(name, name)
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
            elif node.op_type == "MatMulNBits" and attribute.name == "accuracy_level":
                attribute.i = 0
            elif attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT16:
                attribute.t.CopyFrom(_widened(attribute.t))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    exact_products(graph)
    if not int8_caches:
        float_caches(graph)
    return copy


def all_positions(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """The same graph with logits [B, S, V], right for rows without padding; None where its last-token part is unknown.

    A graph that gives every position already is returned as it is.
    """
    logits = next(value for value in model.graph.output if value.name == contract.LOGITS)
    rows = logits.type.tensor_type.shape.dim[1]
    if rows.dim_value != 1:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    del graph.value_info[:]
    made_by = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    bypass: dict[str, str] = {}
    for node in graph.node:
        index = made_by.get(node.input[1]) if node.op_type == "GatherElements" else None
        shape = constants.get(index.input[1]) if index is not None and index.op_type == "Expand" else None
        if shape is not None and list(onnx.numpy_helper.to_array(shape))[:2] == [1, 1]:
            bypass[node.output[0]] = node.input[0]
    if not bypass:
        return None
    for node in graph.node:
        for number, name in enumerate(node.input):
            node.input[number] = bypass.get(name, name)
    kept = [node for node in graph.node if not any(name in bypass for name in node.output)]
    del graph.node[:]
    graph.node.extend(kept)
    inputs = [value for value in graph.input if value.name != contract.LOGITS_FROM_END]
    del graph.input[:]
    graph.input.extend(inputs)
    positions = next(value for value in graph.output if value.name == contract.LOGITS).type.tensor_type.shape.dim[1]
    positions.Clear()
    positions.dim_param = contract.SEQUENCE
    return copy


def _widened(tensor: TensorProto) -> TensorProto:
    values = onnx.numpy_helper.to_array(tensor).astype("float32")
    return onnx.numpy_helper.from_array(values, tensor.name)
