"""An 8-bit product as two of 4 bits: the same numbers, from the node's own inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from lfm2export.quant import quantize
from lfm2export.quant.blocks import dequantize
from lfm2export.verify import nibbles
from lfm2export.verify.nibbles import split_bytes
from lfm2export.weights import BlockFormat

N, K = 24, 80


def graph(symmetric: bool) -> tuple[onnx.ModelProto, np.ndarray]:
    """y = x W as one 8-bit product, and the W [N, K] that it multiplies by; the last block is not full."""
    form = BlockFormat(8, 32, symmetric=symmetric)
    weight = np.random.default_rng(3).standard_normal((N, K)).astype(np.float32)
    blocks = quantize(weight, form)
    tensors = {"codes": blocks.codes, "scales": blocks.scales.astype(np.float32)}
    if blocks.zero_points is not None:
        tensors["zeros"] = blocks.zero_points
    node = helper.make_node(
        "MatMulNBits", ["x", *tensors], ["y"], domain="com.microsoft", bits=8, block_size=32, K=K, N=N, accuracy_level=0
    )
    made = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", N])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10), dequantize(blocks, form, K)


def run(model: onnx.ModelProto, x: np.ndarray, given: dict[str, np.ndarray]) -> np.ndarray:
    options = ort.SessionOptions()
    options.add_external_initializers(list(given), [ort.OrtValue.ortvalue_from_numpy(v) for v in given.values()])
    found: np.ndarray = ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})[0]
    return found


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_halves_add_up(symmetric: bool, rows: int, tmp_path: Path) -> None:
    model, weight = graph(symmetric)
    given = split_bytes(model.graph, tmp_path)
    assert [node.op_type for node in model.graph.node] == ["Mul", "MatMulNBits", "MatMulNBits", "Add"]
    assert sorted(given) == ["codes/high", "codes/low", "y/high/zero_points", "y/low/zero_points"]
    x = np.random.default_rng(5).standard_normal((rows, K)).astype(np.float32)
    np.testing.assert_allclose(run(model, x, given), x @ weight.T, rtol=0, atol=2e-5)


def test_a_wrong_zero_point_stays_wrong(tmp_path: Path) -> None:
    model, weight = graph(symmetric=False)
    zeros = numpy_helper.to_array(model.graph.initializer[2]).copy()
    zeros[3, 1] += 1
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(zeros, "zeros"))
    scale = float(numpy_helper.to_array(model.graph.initializer[1])[3, 1])
    weight[3, 32:64] -= scale
    x = np.ones((1, K), np.float32)
    np.testing.assert_allclose(run(model, x, split_bytes(model.graph, tmp_path)), x @ weight.T, rtol=0, atol=2e-5)


def test_what_is_too_large_or_made_in_the_graph_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = graph(symmetric=False)
    model.graph.node[0].input[3] = "x"
    assert split_bytes(model.graph, tmp_path) == {}
    model, _ = graph(symmetric=False)
    monkeypatch.setattr(nibbles, "SPLIT_BYTES", 100)
    assert split_bytes(model.graph, tmp_path) == {}
    assert [node.op_type for node in model.graph.node] == ["MatMulNBits"]
