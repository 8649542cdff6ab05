"""Products of int8 weights and activations rounded token by token: their exact copy, and the proof of their rounding.

    x - Flatten -+- QuantizeLinear(s, 128) - MatMulInteger(W) - Cast - Mul(channel scales) - Mul(s) - Reshape - y
                 `- ... - s [M] --------------------------------------------- Unsqueeze [M, 1] -'

The exact copy multiplies the flattened x by Cast(W), and its last factor is 1: the same graph on the same weights
without any rounding of activations. It proves everything but the rounding; that is held to a model of it in numpy,
product by product and token by token, on what the shipped graph itself reads (:func:`measure_rounding`).
Letters: M tokens, K columns (input features), N rows (output features).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from lfm2export.verify.figures import RoundingMeasure
from lfm2export.verify.stored import CAST, Raw, raw_tensor

PRODUCT = "MatMulInteger"

#: Columns of a product that numpy computes at once: float64 weights of them are held.
COLUMNS = 4096

ONE = "int8/one"


@dataclass(frozen=True)
class Int8Product:
    """Names of one product's values: tokens [M, K] and scale [M] before, sums [M, N] of integers, result [M, N].

    weights: the initializer, [K, N] or, where `rows`, [N, K]. channel_scales: the initializer of float16 or float32.
    """

    tokens: str
    scale: str
    sums: str
    weights: str
    rows: bool
    channel_scales: str
    result: str


def int8_products(graph: GraphProto) -> list[Int8Product]:
    """Every MatMulInteger of `graph` that has the form above; another exporter's may round otherwise."""
    made_by = {name: node for node in graph.node for name in node.output}
    readers = _readers(graph)
    found = []
    for node in graph.node:
        if node.op_type != PRODUCT:
            continue
        product = _product(node, made_by, readers)
        if product is not None:
            found.append(product)
    return found


def _product(
    node: NodeProto, made_by: Mapping[str, NodeProto], readers: Mapping[str, Sequence[NodeProto]]
) -> Int8Product | None:
    rounding = made_by.get(node.input[0])
    cast = _reader(readers, node.output[0], "Cast")
    by_channel = _reader(readers, cast.output[0], "Mul") if cast is not None else None
    by_token = _reader(readers, by_channel.output[0], "Mul") if by_channel is not None else None
    if (
        rounding is None
        or rounding.op_type != "QuantizeLinear"
        or cast is None
        or by_channel is None
        or by_token is None
    ):
        return None
    transpose = made_by.get(node.input[1])
    scales = next((name for name in by_channel.input if name != cast.output[0]), "")
    scale_cast = made_by.get(scales)
    return Int8Product(
        tokens=rounding.input[0],
        scale=rounding.input[1],
        sums=node.output[0],
        weights=transpose.input[0] if transpose is not None else node.input[1],
        rows=transpose is not None,
        channel_scales=scale_cast.input[0] if scale_cast is not None else scales,
        result=by_token.output[0],
    )


def exact_products(graph: GraphProto) -> None:
    """Rewrite every product of `graph` into one of float32, in place; the weights stay int8 and are cast as read."""
    products = {product.sums: product for product in int8_products(graph)}
    if not products:
        return
    scales = {product.scale for product in products.values()}
    widened = {node.output[0] for node in graph.node if node.op_type == "Unsqueeze" and node.input[0] in scales}
    nodes: list[NodeProto] = []
    for node in graph.node:
        for number, name in enumerate(node.input):
            if name in widened:
                node.input[number] = ONE
        product = products.get(node.output[0])
        if product is not None:
            cast = product.weights + CAST
            nodes.append(helper.make_node("Cast", [node.input[1]], [cast], to=TensorProto.FLOAT))
            nodes.append(helper.make_node("MatMul", [product.tokens, cast], [node.output[0]]))
        else:
            nodes.append(node)
    graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), ONE))
    del graph.node[:]
    graph.node.extend(nodes)


def recorded_names(products: Sequence[Int8Product]) -> tuple[str, ...]:
    """What each product reads and makes, each name once."""
    return tuple(dict.fromkeys(name for product in products for name in (product.tokens, product.result)))


def recorded_copy(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy of `model` that also gives the float32 values `names`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for name in names:
        copy.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return copy


def measure_rounding(
    model: onnx.ModelProto, folder: Path, products: Sequence[Int8Product], values: Mapping[str, NDArray[Any]]
) -> RoundingMeasure:
    """Each product's result, as recorded in `values`, against numpy's on the same tokens and the file's own weights.

    Raises:
        ArtifactError: the file's data cannot be read.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    worst, where, tokens = 0.0, None, 0
    for product in products:
        x, got = values[product.tokens], values[product.result]
        raw = raw_tensor(tensors[product.weights], folder)
        channel_scales = raw_tensor(tensors[product.channel_scales], folder)
        scales, codes = rounded_tokens(x)
        tokens += len(x)
        for start, stop in _ranges(got.shape[1], COLUMNS):
            wanted = codes @ _columns(raw, product.rows, start, stop)
            wanted *= channel_scales.rows(start, stop).astype(np.float64)
            wanted *= scales[:, None]
            difference = np.abs(wanted - got[:, start:stop])
            share = difference / np.maximum(np.abs(got).max(axis=1, keepdims=True), np.float32(1e-30))
            share = np.nan_to_num(share, nan=np.inf)
            most = float(share.max(initial=0))
            if most > worst:
                row, column = np.unravel_index(int(np.argmax(share)), share.shape)
                worst, where = most, f"{product.weights}, token {int(row)}, channel {start + int(column)}"
    return RoundingMeasure(len(products), tokens, worst, where)


def rounded_tokens(x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """x [M, K] -> (scales float32 [M], codes around 0 [M, K]): each token on its own scale, the nearest code, ties to
    the even one."""
    scales = np.maximum(np.abs(x).max(axis=1) * np.float32(1 / 127), np.float32(1e-30))
    codes = np.clip(np.rint(x / scales[:, None]), -128, 127)
    return scales, codes.astype(np.float64)


def _columns(raw: Raw, rows: bool, start: int, stop: int) -> NDArray[np.float64]:
    """Channels [start, stop) of the weights, [K, stop - start]."""
    found = raw.rows(start, stop).T if rows else raw.columns(start, stop).T
    return found.astype(np.float64)


def _ranges(count: int, step: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, step):
        yield start, min(start + step, count)


def _readers(graph: GraphProto) -> dict[str, list[NodeProto]]:
    found: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def _reader(readers: Mapping[str, Sequence[NodeProto]], value: str, op_type: str) -> NodeProto | None:
    """The reader of `value` of that type, if it has just one."""
    found = [reader for reader in readers.get(value, ()) if reader.op_type == op_type]
    return found[0] if len(found) == 1 else None
