"""Files with int8 keys and values: built, run by both loops, inspected, and refused where they are not for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from lfm2export.bench.run import bench_artifact
from lfm2export.consumers import openvino
from lfm2export.consumers.asked import Asked
from lfm2export.consumers.card_loop import _result
from lfm2export.consumers.result import Verdict
from lfm2export.consumers.transformers_js import INT8_ON_WEBGPU, refusal
from lfm2export.errors import ArtifactError, Lfm2ExportError
from lfm2export.inspection import inspect_artifact
from lfm2export.pipeline import build
from lfm2export.recipes import Options, kv_cache
from lfm2export.runtime import BufferedModel, OnnxModel, fastest

#: Of either branch of the graph, with a past and without.
SIZES = [12, 1, 1, 20, 3, 1]


def ids(rows: int, count: int) -> np.ndarray:
    return np.random.default_rng(rows).integers(14, 500, (rows, count))


@pytest.mark.parametrize("dtype", ["q8", "q4"])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("max_length", [None, 64])
def test_buffered_equals_copying_bit_for_bit(int8_caches: Path, dtype: str, rows: int, max_length: int | None) -> None:
    model = OnnxModel(int8_caches, dtype, threads=1)
    assert model.kv_cache == "int8" and isinstance(fastest(model), BufferedModel)
    buffered = BufferedModel(model, max_length)
    copied, shared = model.new_state(rows), buffered.new_state(rows)
    for size in SIZES if rows == 1 else [20, *[1] * 6]:
        tokens = ids(rows, size)
        wanted, copied = model.step(tokens, copied)
        got, shared = buffered.step(tokens, shared)
        assert np.array_equal(got, wanted)
        length = int(copied.lengths[0])
        pairs = zip(model.contract.caches, model.read_caches(copied), buffered.read_caches(shared), strict=True)
        for cache, one, other in pairs:
            assert one.dtype == np.float32
            assert np.array_equal(one, other if cache.kind == "conv" else other[:, :, :length]), cache.past.name


def test_caches_are_codes_and_are_read_as_floats(int8_caches: Path) -> None:
    model = OnnxModel(int8_caches, "q4", threads=1)
    _, state = model.step(ids(1, 10), model.new_state())
    for cache, held, read, scale in zip(
        model.contract.caches, state.caches, model.read_caches(state), model.scales, strict=True
    ):
        assert held.dtype == (np.float32 if cache.kind == "conv" else np.int8)
        if scale is not None:
            np.testing.assert_array_equal(read, held * scale)
            assert 0.05 < np.abs(held).max() / 127 <= 1.01


def test_they_are_near_the_float_ones(int8_caches: Path, tiny_artifact: object) -> None:
    """A code is at most .5 of 127 / 1.25 off, which is .5 % of the largest that the scale was made for."""
    one = OnnxModel(int8_caches, "q4", threads=1)
    other = OnnxModel(tiny_artifact("last"), "q4", threads=1)  # type: ignore[operator]
    tokens = ids(1, 40)
    wanted, floats = other.step(tokens, other.new_state())
    got, codes = one.step(tokens, one.new_state())
    assert np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()
    first = next(i for i, cache in enumerate(one.contract.caches) if cache.kind == "key")
    for index in (first, first + 1):  # nothing before the first attention is rounded
        scale = one.scales[index]
        assert scale is not None
        difference = np.abs(one.read_caches(codes)[index] - floats.caches[index])
        assert (difference <= 0.5001 * scale + 1e-6).mean() > 0.999  # some are beyond the largest code


def test_the_manifest_and_the_settings_say_so(int8_caches: Path) -> None:
    recipe = json.loads((int8_caches / "build.json").read_text())["recipe"]
    for dtype in ("q8", "q4"):
        assert recipe[dtype]["keys and values"]["scale"] == "one a channel"
        assert recipe[dtype]["keys and values"]["tokens"] == 4096
    settings = json.loads((int8_caches / "config.json").read_text())["transformers.js_config"]
    assert settings["kv_cache_dtype"] == {"q8": "int8", "q4": "int8"}
    found = inspect_artifact(int8_caches)
    assert found.good
    assert {tensor.dtype for model in found.models for tensor in model.inputs if "key" in tensor.name} == {"int8"}


def test_a_benchmark_counts_their_bytes(int8_caches: Path, tiny_artifact: object) -> None:
    def read(folder: Path) -> int:
        (file,) = bench_artifact(folder, ["q4"], contexts=[64], repeats=1, decoded=2, threads=1).files
        assert file.loop == "buffered" and file.contexts[0].bytes_per_token is not None
        return file.contexts[0].bytes_per_token

    spec = OnnxModel(int8_caches, "q4", threads=1).spec
    codes = 2 * len(spec.attention_layers) * spec.num_key_value_heads * spec.head_dim * 64
    saved = read(tiny_artifact("last")) - read(int8_caches)  # type: ignore[operator]
    assert 0 < 3 * codes - saved < 2000  # less the scales, which are read too


def test_which_files_take_them() -> None:
    options = Options(kv_cache="int8")
    assert {dtype: kv_cache(dtype, options) for dtype in ("fp32", "fp16", "q8", "q4", "q4f16")} == {
        "fp32": "native",
        "fp16": "native",
        "q8": "int8",
        "q4": "int8",
        "q4f16": "native",
    }
    assert kv_cache("q4", Options()) == "native"


def test_a_build_of_none_of_those_is_refused(tiny_source: Path, tmp_path: Path) -> None:
    with pytest.raises(Lfm2ExportError, match=r"--kv-cache int8 is for q4 and q8, and only fp32, fp16 is built"):
        build(str(tiny_source), dtypes=["fp16", "fp32"], options=Options(kv_cache="int8"), out=tmp_path / "out")


def test_a_file_without_its_scales_is_refused_when_caches_are_read(int8_caches: Path) -> None:
    graph = onnx.load(int8_caches / "onnx" / "model_q4.onnx", load_external_data=False)
    for tensor in graph.graph.initializer:
        if tensor.name == "past_key_values.1.key.scale":
            tensor.name = "scale"
    for node in graph.graph.node:
        for names in (node.input, *(inner.input for a in node.attribute for inner in a.g.node)):
            for number, name in enumerate(names):
                names[number] = "scale" if name == "past_key_values.1.key.scale" else name
    model = OnnxModel(int8_caches, "q4", graph=graph.SerializeToString(), threads=1)
    _, state = model.step(ids(1, 3), model.new_state())
    with pytest.raises(ArtifactError, match=r"the scale of past_key_values\.1\.key is not in the graph"):
        model.read_caches(state)


def test_runtimes_that_cannot_are_named(int8_caches: Path) -> None:
    adapter = {"float16": False, "vendor": "", "architecture": "", "description": ""}
    assert refusal("q4", "webgpu", adapter, "int8") == INT8_ON_WEBGPU
    assert refusal("q4", "webgpu", adapter, "native") is None and refusal("q4", "wasm", None, "int8") is None
    assert openvino._refusal(int8_caches / "onnx" / "model_q4.onnx") == openvino.INT8_CACHES
    found = _result(Asked(int8_caches, "q4"), {"error": "INVALID_GRAPH"}, "1.22.0", 1.0)
    assert found.verdict is Verdict.NOT_RUN and "need onnxruntime 1.27 or newer" in str(found.reason)
    assert _result(Asked(int8_caches, "q4"), {"error": "why"}, "1.32.0", 1.0).verdict is Verdict.FAILED
