"""The writer: onnx and onnxruntime read back what the recipes say, whatever the threads, within bounded memory."""

from __future__ import annotations

import hashlib
import math
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lfm2export import pieces
from lfm2export.contract import IR_VERSION, MICROSOFT_OPSET, OPSET
from lfm2export.quant import dequantize, quantize
from lfm2export.weights import BlockFormat, QuantizedBlocks, Recipe
from lfm2export.writer import data_name, lay_out, write_model
from tests.weight_recipes import Q4, Matrix, Source, every_kind, gaussian, model_of, quantized, small_pieces


def read_back(path: Path) -> dict[str, NDArray[Any]]:
    model = onnx.load(path)
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("piece_bytes", [1, 1000, 1 << 22])
def test_onnx_reads_what_the_recipes_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int) -> None:
    small_pieces(monkeypatch, piece_bytes)
    source, recipes, expected = every_kind()
    written = write_model(model_of(recipes), source, tmp_path / "model_q4.onnx", threads=2)
    found = read_back(tmp_path / "model_q4.onnx")
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    assert written.overflows == ()


def test_what_was_written_is_listed(tmp_path: Path) -> None:
    source, recipes, expected = every_kind()
    written = write_model(model_of(recipes), source, tmp_path / "m.onnx", threads=2)
    assert [file.name for file in written.files] == ["m.onnx", "m.onnx_data"]
    for file in written.files:
        content = (tmp_path / file.name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.bytes, file.sha256)
    listed = {entry.name: entry for entry in written.initializers}
    assert listed.keys() == expected.keys()
    for name, values in expected.items():
        assert (listed[name].shape, listed[name].nbytes) == (values.shape, values.nbytes)
        assert listed[name].recipe == recipes.get(name)
    assert (listed["q.scales"].dtype, listed["constant"].dtype) == ("FLOAT16", "INT64")


def test_the_graph_keeps_its_versions_and_inlines_constants(tmp_path: Path) -> None:
    source, recipes, _ = every_kind()
    write_model(model_of(recipes), source, tmp_path / "m.onnx", threads=1)
    model = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    assert model.ir_version == IR_VERSION
    assert {opset.domain: opset.version for opset in model.opset_import} == {
        "": OPSET,
        "com.microsoft": MICROSOFT_OPSET,
    }
    for tensor in model.graph.initializer:
        external = {entry.key: entry.value for entry in tensor.external_data}
        assert external.get("location") == (None if tensor.name == "constant" else "m.onnx_data")


def test_onnxruntime_runs_what_was_written(tmp_path: Path) -> None:
    """x -> MatMulNBits -> MatMul, scales stored as float16 behind a Cast."""
    source = Source({"w": gaussian(48, 64), "v": gaussian(16, 48)})
    recipes = {**quantized("w", ("w",), 48, 64, Q4), "v": Recipe(("v",), (48, 16), transpose=True)}
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["rows", 64]))
    codes, scales, zeros, v = (ir.Value(name=name) for name in recipes)
    cast = ir.node("Cast", [scales], {"to": ir.DataType.FLOAT.value})
    attributes = {"K": 64, "N": 48, "bits": 4, "block_size": 32, "accuracy_level": 0}
    hidden = ir.node("MatMulNBits", [x, codes, cast.outputs[0], zeros], attributes, domain="com.microsoft")
    product = ir.node("MatMul", [hidden.outputs[0], v])
    product.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    product.outputs[0].name = "y"
    model = model_of(recipes, [cast, hidden, product], inputs=[x], outputs=[product.outputs[0]])
    write_model(model, source, tmp_path / "m.onnx", threads=2)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    fed = gaussian(5, 64, seed=1)
    w = dequantize(quantize(source.tensors["w"], Q4), Q4, 64)
    np.testing.assert_allclose(
        session.run(None, {"x": fed})[0], fed @ w.T @ source.tensors["v"].T, rtol=1e-4, atol=1e-3
    )


def test_bytes_do_not_depend_on_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_pieces(monkeypatch, 700)
    source, recipes, _ = every_kind()
    for threads in (1, 2, 7):
        (tmp_path / str(threads)).mkdir()
        write_model(model_of(recipes), source, tmp_path / str(threads) / "m.onnx", threads=threads)
    one = contents(tmp_path / "1")
    assert contents(tmp_path / "2") == one
    assert contents(tmp_path / "7") == one


def test_chunks_hold_whole_tensors_under_bare_names(tmp_path: Path) -> None:
    source, recipes, expected = every_kind()
    limit = 64 * 72 * 4
    written = write_model(model_of(recipes), source, tmp_path / "m.onnx", threads=2, max_chunk_bytes=limit)
    names = [file.name for file in written.files[1:]]
    assert names == [data_name("m.onnx", number) for number in range(len(names))]
    assert names[:3] == ["m.onnx_data", "m.onnx_data_1", "m.onnx_data_2"]
    assert all(file.bytes <= limit for file in written.files[1:])
    for name, values in read_back(tmp_path / "m.onnx").items():
        np.testing.assert_array_equal(values, expected[name])
    for file in written.files:
        assert hashlib.sha256((tmp_path / file.name).read_bytes()).hexdigest() == file.sha256


@given(st.lists(st.integers(1, 300_000), max_size=30), st.integers(300_000, 1_000_000))
def test_layout_is_ordered_aligned_and_never_overlaps(counts: list[int], limit: int) -> None:
    recipes = {f"t{i}": Recipe((f"t{i}",), (count,), "UINT8") for i, count in enumerate(counts)}
    slots, sizes = lay_out(recipes, limit)
    assert [slot.name for slot in slots] == list(recipes)
    assert all(0 < size <= limit for size in sizes)
    ends = [0] * len(sizes)
    for before, slot in zip([None, *slots], slots, strict=False):
        assert before is None or before.file <= slot.file <= before.file + 1
        assert slot.offset >= ends[slot.file] and slot.offset % (4096 if slot.nbytes >= 65536 else 64) == 0
        ends[slot.file] = slot.offset + slot.nbytes
    assert ends == sizes


def test_a_model_without_weights_has_no_data_file(tmp_path: Path) -> None:
    written = write_model(model_of({}), Source({}), tmp_path / "m.onnx", threads=2)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"] == [file.name for file in written.files]


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    source, recipes, _ = every_kind()
    calls: list[tuple[str, int, int | None, str]] = []
    write_model(model_of(recipes), source, tmp_path / "m.onnx", threads=2, progress=lambda *call: calls.append(call))
    total = sum(pieces.stored_bytes(recipe) for recipe in recipes.values())
    assert max(call[1] for call in calls) == total
    assert len(calls) == 14  # one for each piece, not for each write
    assert {(stage, of, unit) for stage, _, of, unit in calls} == {("write", total, "B")}


def test_values_that_float16_cannot_hold_are_limited_and_reported(tmp_path: Path) -> None:
    weight = gaussian(64, 64)
    weight[3, 4], weight[50, 1], weight[9, 9], weight[8, 8] = 1e5, -3e6, 65519, 65504
    source, format = Source({"w": weight}), BlockFormat(4, 32, symmetric=True)
    recipes = {"w": Recipe(("w",), (64, 64), "FLOAT16"), **quantized("q", ("w",), 64, 64, format)}
    written = write_model(model_of(recipes), source, tmp_path / "m.onnx", threads=2)
    dense, scales = written.overflows
    assert (dense.tensor, dense.count, dense.largest) == ("w", 2, 3e6)
    assert (scales.tensor, scales.count, scales.largest) == ("q.scales", 1, 3e6)
    found = read_back(tmp_path / "m.onnx")
    assert (found["w"][3, 4], found["w"][50, 1], found["w"][9, 9]) == (65504, -65504, 65504)
    assert all(np.isfinite(values).all() for values in found.values())


@dataclass
class LargeSource:
    """Rows made when they are read."""

    shapes: dict[str, tuple[int, ...]]

    @property
    def tensors(self) -> dict[str, SimpleNamespace]:
        return {name: SimpleNamespace(shape=shape) for name, shape in self.shapes.items()}

    def rows(self, name: str, start: int, stop: int) -> Matrix:
        return gaussian(stop - start, *self.shapes[name][1:], seed=start)

    def prepared(self, name: str, start: int, stop: int, format: BlockFormat) -> QuantizedBlocks | None:
        return None


@pytest.mark.parametrize("kind", ["dense", "transposed", "quantized"])
def test_memory_is_bounded_by_pieces_not_by_tensors(tmp_path: Path, kind: str) -> None:
    """200 MB of float32 in one tensor, 2 threads: six times a piece each."""
    rows, columns = 26_000, 2048
    recipes = {
        "dense": {"w": Recipe(("w",), (rows, columns), "FLOAT16")},
        "transposed": {"w": Recipe(("w",), (columns, rows), "FLOAT16", transpose=True)},
        "quantized": quantized("w", ("w",), rows, columns, BlockFormat(4, 32, symmetric=False, quantizer="round")),
    }[kind]
    assert rows * columns * 4 > 200e6
    tracemalloc.start()
    try:
        write_model(model_of(recipes), LargeSource({"w": (rows, columns)}), tmp_path / "m.onnx", threads=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * 6 * pieces.PIECE_BYTES
    assert math.isclose(
        (tmp_path / "m.onnx_data").stat().st_size, rows * columns * (0.625 if kind == "quantized" else 2), rel_tol=0.1
    )
