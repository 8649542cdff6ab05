"""Bytes that one decode step reads, from the graph: weights, the table's row, and the caches.

What onnxruntime computes once at load (a Cast of scales) counts at its result's size. A weight that two operators read
counts twice: the tied table is a row for the lookup and the whole for the head. What a kernel's own layout adds or
saves (prepacking) is not in the graph and does not count.
Letters: K KV heads, P past, D head_dim, H hidden, L conv_L_cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lfm2export import contract
from lfm2export.errors import ArtifactError
from lfm2export.spec import ModelSpec
from lfm2export.untrusted.onnx_file import read_model

#: Operators that read one row a token of some inputs: the tables of embeddings, and of sines.
ROW_READERS = {
    "Gather": (0,),
    "GatherBlockQuantized": (0, 2, 3),
    "RotaryEmbedding": (2, 3),
    "GroupQueryAttention": (7, 8),
}

#: onnxruntime leaves these to run at every step, even on constants.
NEVER_FOLDED = ("DequantizeLinear", "QuantizeLinear")


@dataclass(frozen=True)
class _Constant:
    bytes: int
    shape: tuple[int, ...] | None


def weight_bytes(path: Path) -> int:
    """Bytes of constants that one decode step of one row reads of the ONNX file at `path`.

    Raises:
        ArtifactError: it is no ONNX model.
    """
    import onnx_ir as ir

    model = read_model(path, weights=False)
    try:
        graph = ir.from_proto(model).graph
    except Exception as error:  # onnx_ir raises many kinds for a graph that contradicts itself
        line = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{path} is not a readable ONNX model ({line}); build it again") from error
    return _graph_bytes(graph, {})


def cache_bytes(spec: ModelSpec, dtype: contract.CacheDtype, context: int, kv: contract.KvCache = "native") -> int:
    """Bytes of caches that a decode step with `context` tokens in the past reads, all layers together.

    Keys and values are [1, K, P, D] each, conv states [1, H, L].
    """
    sizes = {contract.BATCH: 1, contract.PAST: context}
    total = 0
    for cache in contract.caches(spec, dtype, kv):
        shape = (sizes[size] if isinstance(size, str) else size for size in cache.past.shape)
        total += math.prod(shape) * np.dtype(cache.past.dtype).itemsize
    return total


def _graph_bytes(graph: Any, outer: dict[Any, _Constant]) -> int:
    """`outer` are the constants that a branch sees of the graphs around it."""
    constants = outer | {value: _initializer(value) for value in graph.initializers.values()}
    total = 0
    for node in graph:
        held = [constants.get(value) for value in node.inputs]
        branches = [attribute.as_graph() for attribute in node.attributes.values() if attribute.type.name == "GRAPH"]
        known = all(found is not None or value is None for found, value in zip(held, node.inputs, strict=True))
        if known and not branches and node.op_type not in NEVER_FOLDED:
            constants |= {output: _folded(node, output, held) for output in node.outputs}
            continue
        total += sum(_read(node, index, found) for index, found in enumerate(held) if found is not None)
        total += max((_graph_bytes(branch, constants) for branch in branches), default=0)
    return total


def _read(node: Any, index: int, constant: _Constant) -> int:
    """Bytes that `node` reads of its constant input `index` for one token."""
    if index not in ROW_READERS.get(node.op_type, ()):
        return constant.bytes
    axis = node.attributes.get_int("gather_axis" if node.op_type == "GatherBlockQuantized" else "axis", 0)
    return constant.bytes // constant.shape[axis] if constant.shape and constant.shape[axis] else constant.bytes


def _initializer(value: Any) -> _Constant:
    tensor = value.const_value
    if tensor is None:
        raise ArtifactError(f"initializer {value.name} has no value; build the file again")
    return _Constant(int(tensor.nbytes), tuple(int(size) for size in tensor.shape))


def _folded(node: Any, output: Any, inputs: Iterable[_Constant | None]) -> _Constant:
    """What `node` makes of constants: by its stated shape, else as large as what it is made of."""
    import onnx_ir as ir

    whole = [found for found in inputs if found is not None]
    if node.op_type == "Constant":
        tensor = node.attributes["value"].as_tensor() if "value" in node.attributes else None
        # The other forms hold a few numbers: axes, shapes.
        return _Constant(0, None) if tensor is None else _Constant(int(tensor.nbytes), tuple(map(int, tensor.shape)))
    if node.op_type == "Cast":
        size = ir.DataType(node.attributes.get_int("to")).itemsize
        shape = whole[0].shape
        if shape is not None:
            return _Constant(math.ceil(math.prod(shape) * size), shape)
    if output.shape is not None and output.dtype is not None and output.shape.is_static():
        shape = tuple(int(size) for size in output.shape)
        return _Constant(math.ceil(math.prod(shape) * output.dtype.itemsize), shape)
    return _Constant(sum(found.bytes for found in whole), None)
