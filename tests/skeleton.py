"""Model files with the contract's inputs and outputs and a few named weights: enough for what only reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from lfm2export.contract import IR_VERSION, LAST_TOKEN, MODEL_FILES, OPSET, LogitsMode, Tensor, cache_dtype, contract
from lfm2export.spec import ModelSpec

TYPES = {"int64": TensorProto.INT64, "float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


@dataclass(frozen=True)
class File:
    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Overflow:
    tensor: str
    count: int
    largest: float


@dataclass(frozen=True)
class Model:
    files: Sequence[File]
    overflows: Sequence[Overflow] = ()


def write_skeleton(folder: Path, spec: ModelSpec, dtype: str, logits: LogitsMode = "last", chunks: int = 1) -> Model:
    """`folder`/onnx/<file of dtype> with data files; it has the contract of `spec`, and computes nothing."""
    held = contract(spec, cache_dtype(dtype), logits)
    random = np.random.default_rng(5)
    weights = {
        "model.embed_tokens.weight_codes": random.integers(0, 255, (64, 16), dtype=np.uint8),
        "model.embed_tokens.weight_scales": random.normal(size=(64, 1)).astype(np.float16),
        "model.layers.0.conv.in_proj.weight": random.normal(size=(8, 8)).astype(np.float32),
        "model.layers.0.operator_norm.weight": random.normal(size=8).astype(np.float32),
        "model.layers.1.self_attn.q_proj.weight": random.normal(size=(8, 8)).astype(np.float32),
        "model.layers.1.self_attn.q_layernorm.weight": random.normal(size=8).astype(np.float32),
        "model.layers.1.feed_forward.w1.weight": random.normal(size=(8, 16)).astype(np.float32),
        "rotary.base": random.normal(size=4).astype(np.float32),
    }
    nodes = [helper.make_node("Cast", ["model.embed_tokens.weight_scales"], ["scales"], to=TensorProto.FLOAT)]
    nodes += [helper.make_node("Identity", ["scales"], [output.name]) for output in held.outputs]
    inputs = [_info(t) for t in (*held.inputs, *held.overridable)]
    graph = helper.make_graph(nodes, "skeleton", inputs, [_info(t) for t in held.outputs])
    for tensor in held.overridable:
        graph.initializer.append(numpy_helper.from_array(np.array(LAST_TOKEN, np.int64), tensor.name))
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    path = folder / "onnx" / MODEL_FILES[dtype]
    names = [f"{path.name}_data" + (f"_{number}" if number else "") for number in range(chunks)]
    contents = [b""] * chunks
    for number, (name, value) in enumerate(weights.items()):
        tensor = numpy_helper.from_array(value, name)
        chunk = number % chunks
        external_data_helper.set_external_data(
            tensor, names[chunk], offset=len(contents[chunk]), length=len(tensor.raw_data)
        )
        contents[chunk] += tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        graph.initializer.append(tensor)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    path.write_bytes(model.SerializeToString(deterministic=True))
    for name, content in zip(names, contents, strict=True):
        (path.parent / name).write_bytes(content)
    return Model([_file(path), *(_file(path.parent / name) for name in names)])


def _info(tensor: Tensor) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, TYPES[tensor.dtype], list(tensor.shape))


def _file(path: Path) -> File:
    content = path.read_bytes()
    return File(path.name, len(content), hashlib.sha256(content).hexdigest())
