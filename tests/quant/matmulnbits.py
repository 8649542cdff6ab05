"""onnxruntime's own reading of quantized blocks: a model of one MatMulNBits node, fed with the identity."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from lfm2export.contract import IR_VERSION, MICROSOFT_OPSET, OPSET
from lfm2export.weights import BlockFormat, QuantizedBlocks


def read_by_onnxruntime(
    quantized: QuantizedBlocks, format: BlockFormat, columns: int, accuracy_level: int = 0
) -> NDArray[np.float32]:
    """The matrix [N, K] that MatMulNBits multiplies by; initializers in the very shapes that the writer stores."""
    tensors = {"codes": quantized.codes, "scales": quantized.scales.astype(np.float32)}
    if quantized.zero_points is not None:
        tensors["zero_points"] = quantized.zero_points
    rows = len(quantized.scales)
    node = helper.make_node(
        "MatMulNBits",
        ["x", *tensors],
        ["y"],
        domain="com.microsoft",
        K=columns,
        N=rows,
        bits=format.bits,
        block_size=format.block_size,
        accuracy_level=accuracy_level,
    )
    graph = helper.make_graph(
        [node],
        "read",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["M", columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["M", rows])],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(values), name) for name, values in tensors.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", MICROSOFT_OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(None, {"x": np.eye(columns, dtype=np.float32)})[0].T
    return result
