"""Products of int8 weights and activations rounded token by token: their exact copy, and the proof of their rounding.

    x - Flatten -+- QuantizeLinear(s, 128) - MatMulIntegerToFloat(W, channel scales) - u [M, N], the product over s
                 `- ... - s [M]

The exact copy has Div(x, s) times Cast(W), times the channel scales, for u: the same graph on the same weights without
any rounding of activations. Wherever a token's scale is multiplied back in, or left to a later product, stays as it is
and is proven with all else; the rounding is held to a model of it in numpy, product by product and token by token, on
what the shipped graph itself reads (:func:`measure_rounding`).
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

PRODUCT = "MatMulIntegerToFloat"

#: Operators that round activations, whoever wrote the file.
ROUNDED = (PRODUCT, "MatMulInteger", "MatMulNBits", "DynamicQuantizeMatMul")

#: Columns of a product that numpy computes at once: float64 weights of them are held.
COLUMNS = 4096

#: Where a scale is divided by, at least this: the scale of a token of zeros is 0.
TINY_SCALE = 1e-30
TINY = "int8/tiny"
AXIS = "int8/axis"


@dataclass(frozen=True)
class Int8Product:
    """Names of one product's values: tokens [M, K] and scale [M] before, result [M, N] after.

    weights: the initializer, [K, N] or, where `rows`, [N, K]. channel_scales: the initializer of float16 or float32.
    """

    tokens: str
    scale: str
    weights: str
    rows: bool
    channel_scales: str
    result: str


def int8_products(graph: GraphProto) -> list[Int8Product]:
    """Every MatMulIntegerToFloat of `graph` that has the form above; another exporter's may round otherwise."""
    made_by = {name: node for node in graph.node for name in node.output}
    found = (_product(node, made_by) for node in graph.node if node.op_type == PRODUCT)
    return [product for product in found if product is not None]


def _product(node: NodeProto, made_by: Mapping[str, NodeProto]) -> Int8Product | None:
    rounding = made_by.get(node.input[0])
    if rounding is None or rounding.op_type != "QuantizeLinear":
        return None
    transpose, scale_cast = made_by.get(node.input[1]), made_by.get(node.input[3])
    return Int8Product(
        tokens=rounding.input[0],
        scale=rounding.input[1],
        weights=transpose.input[0] if transpose is not None else node.input[1],
        rows=transpose is not None,
        channel_scales=scale_cast.input[0] if scale_cast is not None else node.input[3],
        result=node.output[0],
    )


def exact_products(graph: GraphProto) -> None:
    """Rewrite every product of `graph` into one of float32, in place; the weights stay int8 and are cast as read."""
    products = {product.result: product for product in int8_products(graph)}
    if not products:
        return
    nodes: list[NodeProto] = []
    divided: set[str] = set()
    for node in graph.node:
        product = products.get(node.output[0])
        if product is None:
            nodes.append(node)
            continue
        quotient, cast, sums = f"{product.tokens}/scaled", product.weights + CAST, f"{product.result}/sums"
        if quotient not in divided:
            divided.add(quotient)
            nodes += _quotient(product, quotient)
        nodes += [
            helper.make_node("Cast", [node.input[1]], [cast], to=TensorProto.FLOAT),
            helper.make_node("MatMul", [quotient, cast], [sums]),
            helper.make_node("Mul", [sums, node.input[3]], [product.result]),
        ]
    read = {name for node in nodes for name in node.input}
    kept = [node for node in nodes if node.op_type != "QuantizeLinear" or node.output[0] in read]
    graph.initializer.append(numpy_helper.from_array(np.array(TINY_SCALE, np.float32), TINY))
    graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), AXIS))
    del graph.node[:]
    graph.node.extend(kept)


def _quotient(product: Int8Product, name: str) -> list[NodeProto]:
    """Tokens over their scales; a token of zeros, whose scale is 0, gives zeros."""
    floor, column = f"{name}/floor", f"{name}/column"
    return [
        helper.make_node("Max", [product.scale, TINY], [floor]),
        helper.make_node("Unsqueeze", [floor, AXIS], [column]),
        helper.make_node("Div", [product.tokens, column], [name]),
    ]


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

    A token of zeros is left out: it has no scale, and what it gives counts for nothing (the exact copy proves that).

    Raises:
        ArtifactError: the file's data cannot be read.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    worst, where, tokens = 0.0, None, 0
    for product in products:
        x, got = values[product.tokens], values[product.result]
        raw = raw_tensor(tensors[product.weights], folder)
        channel_scales = raw_tensor(tensors[product.channel_scales], folder)
        alive = np.abs(x).max(axis=1) * np.float32(1 / 127) >= TINY_SCALE
        x, got = x[alive], got[alive]
        _, codes = rounded_tokens(x)
        tokens += len(x)
        for start, stop in _ranges(got.shape[1], COLUMNS):
            wanted = codes @ _columns(raw, product.rows, start, stop)
            wanted *= channel_scales.rows(start, stop).astype(np.float64)
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
    scales = np.maximum(np.abs(x).max(axis=1) * np.float32(1 / 127), np.float32(TINY_SCALE))
    codes = np.clip(np.rint(x / scales[:, None]), -128, 127)
    return scales, codes.astype(np.float64)


def _columns(raw: Raw, rows: bool, start: int, stop: int) -> NDArray[np.float64]:
    """Channels [start, stop) of the weights, [K, stop - start]."""
    found = raw.rows(start, stop).T if rows else raw.columns(start, stop).T
    return found.astype(np.float64)


def _ranges(count: int, step: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, step):
        yield start, min(start + step, count)
