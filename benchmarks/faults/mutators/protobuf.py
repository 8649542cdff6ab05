"""ONNX: fields of the protobuf message, above all where external data lies and how large it is."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from typing import Any

import onnx

from benchmarks.faults.content import Content
from benchmarks.faults.mutators import byte_level
from benchmarks.faults.mutators.kinds import PATHS, STRINGS, Mutator

#: What protobuf raises for bytes that are no message; its module has no types.
_DECODE_ERROR: type[Exception] = importlib.import_module("google.protobuf.message").DecodeError

SIZES = (
    "0",
    "1",
    "-1",
    "4",
    "x",
    "",
    "1e9",
    "0x10",
    "999999999999",
    str(2**63),
    str(2**64),
    "1" * 400,
    "4095",
    " 5",
    "\u0663",
)
DIMS = (0, 1, -1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63))


def _edits(edit: Callable[[Any, random.Random], str]) -> Mutator:
    def mutate(data: bytes, dice: random.Random) -> tuple[Content, str]:
        model = onnx.ModelProto()
        try:
            model.ParseFromString(data)
            said = edit(model, dice)
            return Content(model.SerializeToString()), said
        except (_DECODE_ERROR, ValueError, IndexError, TypeError):  # no message any more, or nothing of the kind in it
            return byte_level.flip(data, dice)

    return mutate


def _text(dice: random.Random) -> str:
    """A string that protobuf takes."""
    return dice.choice((*STRINGS, *PATHS)).encode("utf-8", "replace").decode()


def location(model: Any, dice: random.Random) -> str:
    entries = [entry for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"]
    chosen = entries if dice.random() < 0.5 else [dice.choice(entries)]
    put = dice.choice(PATHS).encode("utf-8", "replace").decode()
    for entry in chosen:
        entry.value = put
    return f"external data in {put[:60]!r}"


def extent(model: Any, dice: random.Random) -> str:
    entries = [entry for tensor in model.graph.initializer for entry in tensor.external_data if entry.key != "location"]
    entry = dice.choice(entries)
    entry.value = dice.choice(SIZES)
    return f"external {entry.key} {entry.value[:40]!r}"


def external_key(model: Any, dice: random.Random) -> str:
    tensor = dice.choice([tensor for tensor in model.graph.initializer if tensor.external_data])
    if dice.random() < 0.5:
        del tensor.external_data[dice.randrange(len(tensor.external_data))]
        return f"{tensor.name} lacks a field of its external data"
    entry = tensor.external_data.add()
    entry.key, entry.value = dice.choice(("location", "offset", "length", "checksum", "", "x")), _text(dice)
    return f"external {entry.key} {entry.value[:40]!r} added"


def tensor(model: Any, dice: random.Random) -> str:
    found = dice.choice(model.graph.initializer)
    kind = dice.choice(("dims", "more dims", "type", "name", "raw", "no data", "external", "inline", "twice"))
    if kind == "dims" and found.dims:
        found.dims[dice.randrange(len(found.dims))] = dice.choice(DIMS)
    elif kind == "more dims":
        found.dims.extend([dice.choice(DIMS)] * dice.choice((1, 3, 500)))
    elif kind == "type":
        found.data_type = dice.choice((0, 8, 14, 21, 22, 23, 24, 99, -1, 2**31 - 1))
    elif kind == "name":
        found.name = _text(dice)
    elif kind == "raw":
        found.raw_data = found.raw_data[: len(found.raw_data) // 2] + b"x"
    elif kind == "no data":
        found.ClearField("raw_data")
        found.ClearField("external_data")
    elif kind == "external":
        found.data_location = onnx.TensorProto.EXTERNAL
    elif kind == "inline":
        found.data_location = onnx.TensorProto.DEFAULT
    else:
        model.graph.initializer.append(found)
    return f"initializer {found.name[:40]!r}: {kind}"


def value_info(model: Any, dice: random.Random) -> str:
    values = dice.choice((model.graph.input, model.graph.output))
    found = dice.choice(values)
    kind = dice.choice(("name", "type", "dim", "symbol", "no type", "no shape", "gone", "twice", "sequence"))
    if kind == "name":
        found.name = _text(dice)
    elif kind == "type":
        found.type.tensor_type.elem_type = dice.choice((0, 7, 8, 16, 99, -5))
    elif kind in ("dim", "symbol") and found.type.tensor_type.shape.dim:
        dim = dice.choice(found.type.tensor_type.shape.dim)
        if kind == "dim":
            dim.dim_value = dice.choice(DIMS)
        else:
            dim.dim_param = _text(dice)
    elif kind == "no type":
        found.ClearField("type")
    elif kind == "no shape":
        found.type.tensor_type.ClearField("shape")
    elif kind == "gone":
        values.remove(found)
    elif kind == "sequence":
        found.type.sequence_type.elem_type.tensor_type.elem_type = 1
    else:
        values.append(found)
    return f"value {found.name[:40]!r}: {kind}"


def node(model: Any, dice: random.Random) -> str:
    found = dice.choice(model.graph.node)
    kind = dice.choice(("op", "domain", "name", "input", "output", "gone", "twice", "no inputs", "nested", "attribute"))
    if kind == "op":
        found.op_type = dice.choice(("", "If", "Loop", "Nope", _text(dice)))
    elif kind == "domain":
        found.domain = dice.choice(("", "com.microsoft", "nope", _text(dice)))
    elif kind == "name":
        found.name = _text(dice)
    elif kind == "input" and found.input:
        found.input[dice.randrange(len(found.input))] = dice.choice(("", "nothing", found.output[0], _text(dice)))
    elif kind == "output":
        found.output[0] = dice.choice(("", model.graph.node[0].output[0], model.graph.input[0].name, _text(dice)))
    elif kind == "gone":
        model.graph.node.remove(found)
    elif kind == "twice":
        model.graph.node.append(found)
    elif kind == "no inputs":
        del found.input[:]
    elif kind == "nested":
        _nest(found, dice.choice((1, 20, 45, 120)))
    else:
        attribute = found.attribute.add()
        attribute.name, attribute.type = _text(dice), dice.choice((0, 1, 5, 8, 11))
    return f"node {found.name[:40]!r} ({found.op_type[:20]}): {kind}"


def _nest(node: Any, depth: int) -> None:
    for _ in range(depth):
        attribute = node.attribute.add()
        attribute.name, attribute.type = "body", onnx.AttributeProto.GRAPH
        node = attribute.g.node.add()
        node.op_type = "Loop"


def model_fields(model: Any, dice: random.Random) -> str:
    kind = dice.choice(
        ("ir", "opset", "opset gone", "opset twice", "producer", "no graph", "function", "metadata", "name")
    )
    if kind == "ir":
        model.ir_version = dice.choice((0, 1, 3, 9, 99, -1, 2**62))
    elif kind == "opset":
        model.opset_import[0].version = dice.choice((0, 1, 7, 99, -1, 2**62))
    elif kind == "opset gone":
        del model.opset_import[dice.randrange(len(model.opset_import)) :]
    elif kind == "opset twice":
        found = model.opset_import.add()
        found.domain, found.version = dice.choice(("", "com.microsoft", _text(dice))), dice.choice((1, 21, -1))
    elif kind == "producer":
        model.producer_name = _text(dice)
    elif kind == "no graph":
        model.ClearField("graph")
    elif kind == "function":
        found = model.functions.add()
        found.name, found.domain = dice.choice(("MatMulNBits", _text(dice))), dice.choice(("", "com.microsoft"))
        found.node.add().op_type = found.name
    elif kind == "metadata":
        found = model.metadata_props.add()
        found.key, found.value = _text(dice), _text(dice)
    else:
        model.graph.name = _text(dice)
    return kind


MUTATORS: dict[str, Mutator] = {
    edit.__name__: _edits(edit) for edit in (location, extent, external_key, tensor, value_info, node, model_fields)
}
