"""8-bit products as two of 4 bits, for the exact copy.

At accuracy_level 0 the 8-bit kernel of onnxruntime 1.32 dequantizes the whole matrix at every step (.3 s for 65,536 x
1,024 on one core); the 4-bit one multiplies as it reads (.055 s for both halves). A code is 16 high + low, so

    x -- MatMulNBits(codes, scales) -- y   ->   x -- MatMulNBits(high, 16 scales, 8) --+-- Add -- y
                                                `--- MatMulNBits(low, scales, 0) ------`

    s (16 high + low - z) = 16 s (high - z >> 4) + s (low - z & 15)        z: 128 where the node has no zero points

The node's own inputs and attributes are what is split, so a wrong one stays wrong. Nothing cancels: both halves are no
larger than the whole. Letters: N rows, G blocks of a row, S block_size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from lfm2export.quant.blocks import pack
from lfm2export.verify.stored import Raw, raw_tensor

#: Bytes of codes that are split at most: the halves are held in memory, and a larger file's steps stay slow instead.
SPLIT_BYTES = 1 << 31

#: Rows of codes that are split at once.
ROWS = 8192

SIXTEEN = "nibbles/16"


def split_bytes(graph: onnx.GraphProto, folder: Path) -> dict[str, NDArray[np.uint8]]:
    """Rewrite every 8-bit MatMulNBits of `graph`, whose data is in `folder`; the new initializers' values by name."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    chosen = [node for node in graph.node if _splits(node, tensors)]
    codes = {node.input[1]: raw_tensor(tensors[node.input[1]], folder) for node in chosen}
    if sum(np.prod(raw.shape, dtype=np.int64) for raw in codes.values()) > SPLIT_BYTES:
        return {}
    values: dict[str, NDArray[np.uint8]] = {}
    for name, raw in codes.items():
        values[f"{name}/high"], values[f"{name}/low"] = _halves(raw)
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes += _products(node, tensors, folder, values) if node in chosen else [node]
    for name, value in values.items():
        graph.initializer.append(_elsewhere(name, value))
    if values:
        graph.initializer.append(numpy_helper.from_array(np.array(16, np.float32), SIXTEEN))
    del graph.node[:]
    graph.node.extend(nodes)
    return values


def _splits(node: NodeProto, tensors: Mapping[str, TensorProto]) -> bool:
    """An 8-bit product of stored codes, with stored zero points or none."""
    if node.op_type != "MatMulNBits" or _attributes(node).get("bits") != 8:
        return False
    others = [name for name in node.input[3:] if name]
    if node.input[1] not in tensors or len(others) > 1 or any(name not in tensors for name in others):
        return False
    codes, *zeros = (tensors[name] for name in (node.input[1], *others))
    fits = all(math.prod(zero.dims) == math.prod(codes.dims[:2]) for zero in zeros)
    return len(codes.dims) == 3 and fits and all(tensor.data_type == TensorProto.UINT8 for tensor in (codes, *zeros))


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _halves(raw: Raw) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(high, low) nibbles of codes [N, G, S], each packed to [N, G, S / 2]."""
    rows, blocks, size = raw.shape
    high, low = (np.empty((rows, blocks, size // 2), np.uint8) for _ in range(2))
    for start in range(0, rows, ROWS):
        codes = raw.rows(start, min(start + ROWS, rows))
        high[start : start + ROWS], low[start : start + ROWS] = _nibbles(codes >> 4), _nibbles(codes & 15)
    return high, low


def _products(
    node: NodeProto, tensors: Mapping[str, TensorProto], folder: Path, values: dict[str, NDArray[np.uint8]]
) -> list[NodeProto]:
    """The nodes in place of `node`; zero points of the halves go to `values`."""
    rows, blocks = raw_tensor(tensors[node.input[1]], folder).shape[:2]
    zeros = np.full((rows, blocks), 128, np.uint8)
    if len(node.input) > 3 and node.input[3]:
        zeros = raw_tensor(tensors[node.input[3]], folder).rows(0, rows).reshape(rows, blocks)
    x, codes, scales = node.input[:3]
    y = node.output[0]
    found = []
    for half, zero in (("high", zeros >> 4), ("low", zeros & 15)):
        values[f"{y}/{half}/zero_points"] = _nibbles(zero)
        scaled = scales
        if half == "high":
            scaled = f"{y}/scales"
            found.append(helper.make_node("Mul", [scales, SIXTEEN], [scaled]))
        inputs = [x, f"{codes}/{half}", scaled, f"{y}/{half}/zero_points"]
        attributes = _attributes(node) | {"bits": 4}
        found.append(helper.make_node("MatMulNBits", inputs, [f"{y}/{half}"], domain="com.microsoft", **attributes))
    found.append(helper.make_node("Add", [f"{y}/high", f"{y}/low"], [y]))
    return found


def _nibbles(values: NDArray[Any]) -> NDArray[np.uint8]:
    return pack(values.astype(np.uint8, copy=False), 4)


def _elsewhere(name: str, value: NDArray[np.uint8]) -> TensorProto:
    """An initializer whose value the session is given."""
    tensor = TensorProto(name=name, data_type=TensorProto.UINT8, dims=value.shape)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="given")
    return tensor
