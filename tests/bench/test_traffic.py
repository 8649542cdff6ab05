"""Bytes of a decode step against sums done by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from lfm2export.artifact import find_model
from lfm2export.bench.traffic import cache_bytes, weight_bytes
from lfm2export.contract import LogitsMode
from lfm2export.errors import ArtifactError
from lfm2export.spec import parse_spec
from tiny import tiny_config

HEAD = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>\n'


def write(path: Path, text: str, **weights: np.ndarray) -> Path:
    model = onnx.parser.parse_model(HEAD + text)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    onnx.save(model, path)
    return path


def numbers(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(3).integers(1, 100, shape).astype(dtype)


def test_a_row_for_the_lookup_and_all_of_it_for_the_head(tmp_path: Path) -> None:
    """The scales are read as the float32 that a Cast makes of them once, at load."""
    path = write(
        tmp_path / "model.onnx",
        """tied (int64[1, s] ids) => (float[1, s, 40] logits) {
            codes = Gather (table, ids)
            widened = Cast <to = 1> (scales)
            scale = Gather (widened, ids)
            value = Cast <to = 1> (codes)
            hidden = Mul (value, scale)
            logits = com.microsoft.MatMulNBits <K = 16, N = 40, bits = 8, block_size = 16> (hidden, table, widened)
        }""",
        table=numbers(40, 1, 16, dtype="uint8"),
        scales=numbers(40, 1, dtype="float16"),
    )
    assert weight_bytes(path) == (16 + 4) + (40 * 16 + 40 * 4)


def test_int8_keys_and_values_are_a_quarter() -> None:
    spec = parse_spec(tiny_config())
    conv = len(spec.conv_layers) * spec.hidden_size * spec.conv_L_cache * 4
    native, int8 = (cache_bytes(spec, "float32", 100, kv) - conv for kv in ("native", "int8"))
    assert native == 4 * int8 == 4 * 2 * len(spec.attention_layers) * spec.num_key_value_heads * spec.head_dim * 100


def test_tables_of_sines_are_read_by_the_row(tmp_path: Path) -> None:
    path = write(
        tmp_path / "model.onnx",
        """rotated (float[1, 2, s, 8] x, int64[1, s] positions) => (float[1, 2, s, 8] y) {
            y = com.microsoft.RotaryEmbedding (x, positions, cosines, sines)
        }""",
        cosines=numbers(1000, 4),
        sines=numbers(1000, 4),
    )
    assert weight_bytes(path) == 2 * 4 * 4


def test_of_two_branches_the_larger_counts_and_sees_the_weights_outside(tmp_path: Path) -> None:
    small, large = (
        helper.make_graph(
            [helper.make_node("MatMul", ["x", name], [f"{name}_y"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", onnx.TensorProto.FLOAT, None)],
        )
        for name in ("narrow", "wide")
    )
    graph = helper.make_graph(
        [helper.make_node("If", ["first"], ["y"], then_branch=small, else_branch=large)],
        "either",
        [
            helper.make_tensor_value_info("first", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4]),
        ],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(numbers(4, 2), "narrow"), numpy_helper.from_array(numbers(4, 6), "wide")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), tmp_path / "model.onnx")
    assert weight_bytes(tmp_path / "model.onnx") == 4 * 6 * 4


def test_caches_grow_by_the_keys_and_values_of_a_token() -> None:
    spec = parse_spec(tiny_config())
    conv, token = 2 * 64 * 3 * 4, 2 * 2 * (2 * 16) * 4
    assert cache_bytes(spec, "float32", 0) == conv
    assert cache_bytes(spec, "float32", 100) == conv + 100 * token
    assert cache_bytes(spec, "float16", 100) == (conv + 100 * token) // 2


def test_our_files(tiny_artifact: Callable[[LogitsMode], Path]) -> None:
    """All weights of a float file but the table's other rows, and the table again for the head; a quarter in 8 bits."""
    folder = tiny_artifact("last")
    spec = parse_spec(tiny_config())
    reads = {dtype: weight_bytes(find_model(folder, dtype)) for dtype in ("fp32", "fp16", "q8", "q4")}
    exact = 4 * (spec.num_parameters + spec.hidden_size)
    assert reads["fp32"] == pytest.approx(exact, rel=0.01)
    assert reads["fp16"] == pytest.approx(exact / 2, rel=0.01)
    assert reads["q4"] < reads["q8"] < 0.35 * exact


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ArtifactError, match="not a readable ONNX model"):
        weight_bytes(tmp_path / "model.onnx")
