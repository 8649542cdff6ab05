"""The runtime: finding and checking a file, the rules of a step, and the buffered loop against the copying one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfm2export.artifact import available_models, find_model
from lfm2export.errors import ArtifactError, ConfigError, StepError
from lfm2export.runtime import BufferedModel, OnnxModel, fastest
from lfm2export.spec import parse_spec
from lfm2export.steps import next_token_logits, step_inputs
from standin import CONFIG, write_standin
from tiny import write_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_standin(tmp_path_factory.mktemp("standin"))


def tokens(*rows: list[int]) -> np.ndarray:
    return np.array(rows, np.int64)


def test_import_takes_neither_torch_nor_transformers() -> None:
    code = "import lfm2export.runtime, sys; print({'torch', 'transformers', 'onnx'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_default_file_follows_the_stated_order(tmp_path: Path) -> None:
    write_standin(tmp_path, name="model.onnx")
    write_standin(tmp_path, name="model_quantized.onnx")
    assert find_model(tmp_path).name == "model_quantized.onnx"
    write_standin(tmp_path, name="model_q4.onnx")
    assert find_model(tmp_path).name == "model_q4.onnx"
    assert find_model(tmp_path, "fp32").name == "model.onnx"
    assert list(available_models(tmp_path)) == ["fp32", "q8", "q4"]


@pytest.mark.parametrize(
    ("dtype", "message"),
    [("fp16", "has no onnx/model_fp16.onnx; it has fp32"), ("int4", "dtype 'int4' is unknown")],
)
def test_missing_file_is_named(folder: Path, dtype: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        OnnxModel(folder, dtype)


def test_folder_without_models_or_config(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds none of model"):
        OnnxModel(tmp_path)
    with pytest.raises(ArtifactError, match="is not a folder"):
        OnnxModel(tmp_path / "nowhere")
    write_standin(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match="model_type is 'llama'"):
        OnnxModel(tmp_path)


def test_interface_that_contradicts_the_config_is_refused(tmp_path: Path) -> None:
    write_standin(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"layer_types": ["full_attention", "full_attention"]}))
    with pytest.raises(ArtifactError, match=r"input past_key_values\.0\.key is missing \(and \d+ more\)"):
        OnnxModel(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"conv_L_cache": 4}))
    with pytest.raises(ArtifactError, match=r"past_conv\.0 has shape .* expected \['batch_size', 16, 4\]"):
        OnnxModel(tmp_path)


def test_damaged_file_is_one_line(tmp_path: Path) -> None:
    write_standin(tmp_path)
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(ArtifactError, match="is not a readable ONNX model") as caught:
        OnnxModel(tmp_path)
    assert "\n" not in str(caught.value)


def custom_operator(model: Any) -> None:
    model.graph.node[0].domain = "com.stranger"
    model.opset_import.add(domain="com.stranger", version=1)


def beyond_the_file(model: Any) -> None:
    outside(model, offset="4096", length="2560")


def huge_offset(model: Any) -> None:
    outside(model, offset=str(10**17), length="2560")


def another_place(model: Any) -> None:
    outside(model, location="../../config.json")


def memory(model: Any) -> None:
    outside(model, location="*/_ORT_MEM_ADDR_/*", offset="4096", length="2560")


def wrong_length(model: Any) -> None:
    model.graph.initializer[0].raw_data = b"1234"


def huge_shape(model: Any) -> None:
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].dims[:] = [2**40, 2**40]


def outside(model: Any, location: str = "w.bin", **entries: str) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = 1
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (custom_operator, "does not load in onnxruntime"),
        (beyond_the_file, "data file w.bin has 2560 bytes, the graph reads up to 6656; copy"),
        (huge_offset, "data file w.bin has 2560 bytes, the graph reads up to 100000000000002560; copy"),
        (another_place, "names the data file"),
        (memory, "names the data file"),
        (wrong_length, "holds 4 bytes, expected 2560"),
        (huge_shape, "has the shape"),
    ],
)
def test_a_strangers_file_is_refused_in_one_line(tmp_path: Path, fault: Any, message: str) -> None:
    import onnx

    path = write_standin(tmp_path) / "onnx" / "model.onnx"
    (path.parent / "w.bin").write_bytes(bytes(2560))
    model = onnx.load(path)
    fault(model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match=message) as caught:
        OnnxModel(tmp_path)
    assert "\n" not in str(caught.value)


def test_cached_steps_equal_one_prefill(folder: Path) -> None:
    model = OnnxModel(folder)
    ids = tokens([3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8])
    whole, end = model.step(ids, model.new_state(2))
    state = model.new_state(2)
    for column in range(ids.shape[1]):
        logits, state = model.step(ids[:, column : column + 1], state)
    np.testing.assert_allclose(logits, whole, atol=1e-5, rtol=0)
    assert state.lengths.tolist() == [8, 8]
    for cache, stepped, prefilled in zip(
        model.contract.caches, model.read_caches(state), model.read_caches(end), strict=True
    ):
        np.testing.assert_allclose(stepped, prefilled, atol=1e-5, rtol=0, err_msg=cache.past.name)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("mode", ["last", "all"])
@pytest.mark.parametrize("max_length", [None, 600])
def test_buffered_equals_copying_bit_for_bit(
    tmp_path: Path, half: bool, rows: int, mode: str, max_length: int | None
) -> None:
    model = OnnxModel(write_standin(tmp_path, half=half, logits=mode), threads=1)
    assert model.cache_dtype == ("float16" if half else "float32")
    buffered = BufferedModel(model, max_length)
    random = np.random.default_rng(1)
    copy_state, buffer_state = model.new_state(rows), buffered.new_state(rows)
    sizes = [5, 1, 1, 250, 1, 1, 1, 300, 1] if rows == 1 else [250, *[1] * 12]
    for size in sizes:
        ids = random.integers(0, 40, (rows, size))
        expected, copy_state = model.step(ids, copy_state)
        got, buffer_state = buffered.step(ids, buffer_state)
        assert np.array_equal(got, expected)
        length = int(copy_state.lengths[0])
        caches = zip(
            model.contract.caches, model.read_caches(copy_state), buffered.read_caches(buffer_state), strict=True
        )
        for cache, copied, held in caches:
            assert np.array_equal(held if cache.kind == "conv" else held[:, :, :length], copied), cache.past.name
    assert buffer_state.lengths.tolist() == copy_state.lengths.tolist()


def test_fixed_buffer_refuses_what_does_not_fit(folder: Path) -> None:
    model = BufferedModel(OnnxModel(folder), max_length=4)
    _, state = model.step(tokens([1, 2, 3]), model.new_state())
    with pytest.raises(StepError, match="5 tokens do not fit a buffer of 4"):
        model.step(tokens([1, 2]), state)
    _, state = model.step(tokens([1]), state)
    assert state.lengths.tolist() == [4]


def test_a_file_that_appends_to_its_caches_is_run_by_copying(folder: Path, tmp_path: Path) -> None:
    assert isinstance(fastest(OnnxModel(folder)), BufferedModel)
    foreign = OnnxModel(write_standin(tmp_path, appending=True))
    assert fastest(foreign) is foreign
    _, state = foreign.step(tokens([1, 2, 3]), foreign.new_state())
    assert [value.shape for value in foreign.read_caches(state)] == [(1, 16, 3), (1, 1, 3, 8), (1, 1, 3, 8)]
    buffered = BufferedModel(foreign, max_length=4)
    with pytest.raises(StepError, match="onnxruntime fails at this step") as caught:
        buffered.step(tokens([1, 2, 3]), buffered.new_state())
    assert "\n" not in str(caught.value)


SPEC = parse_spec(CONFIG)
NONE = np.zeros((2, 0), np.int64)
PAST = np.array([[0, 1, 1], [1, 1, 1]])


@pytest.mark.parametrize(
    ("ids", "past", "mask", "message"),
    [
        (np.zeros((2, 0), np.int64), NONE, None, "no tokens"),
        (tokens([1, 2]), NONE, None, r"shape \(1, 2\), expected \[2, S\]"),
        (tokens([1, 2], [3, 4]), NONE, tokens([1, 1], [0, 0]), "row 1 is all padding"),
        (tokens([1, 2], [3, 4]), NONE, tokens([1], [1]), "expected zeros and ones"),
        (tokens([1, 2], [3, 4]), NONE, tokens([1, 2], [1, 1]), "expected zeros and ones"),
        (tokens([1, 40], [3, 4]), NONE, None, "token 40 is outside the vocabulary of 40"),
        (tokens([1, -1], [3, 4]), NONE, None, "token -1 is outside"),
        (tokens([1, 2], [3, 4]), PAST, None, "2 tokens for each of 2 rows after the first step"),
        (tokens([1], [3]), PAST, tokens([1], [0]), "a pad was given after the first step"),
        (np.ones((2, 2049), np.int64), NONE, None, "2049 tokens exceed the context length 2048"),
    ],
)
def test_steps_that_cannot_be_exact_are_refused(
    ids: np.ndarray, past: np.ndarray, mask: np.ndarray | None, message: str
) -> None:
    with pytest.raises(StepError, match=message):
        step_inputs(SPEC, ids, past, mask)


def test_positions_count_valid_tokens_on_either_side() -> None:
    ids = tokens([0, 5, 6], [5, 6, 0], [4, 5, 6])
    feeds, mask = step_inputs(SPEC, ids, np.zeros((3, 0), np.int64), tokens([0, 1, 1], [1, 1, 0], [1, 1, 1]))
    assert feeds["position_ids"].tolist() == [[0, 0, 1], [0, 1, 0], [0, 1, 2]]
    feeds, mask = step_inputs(SPEC, tokens([1], [1], [1]), mask, None)
    assert feeds["position_ids"].tolist() == [[2], [2], [3]]
    assert feeds["attention_mask"].tolist() == [[0, 1, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]]


def test_a_pad_may_be_any_number_that_is_no_token() -> None:
    ids = tokens([-100, 5], [5, 6])
    feeds, _ = step_inputs(SPEC, ids, NONE, tokens([0, 1], [1, 1]))
    assert feeds["input_ids"].tolist() == [[0, 5], [5, 6]]


def test_next_token_logits_of_all_positions_take_the_last_valid_one() -> None:
    logits = np.arange(2 * 3 * 2, dtype=np.float32).reshape(2, 3, 2)
    assert next_token_logits(logits).tolist() == [[4, 5], [10, 11]]
    assert next_token_logits(logits, tokens([0, 1, 1], [1, 0, 0])).tolist() == [[4, 5], [6, 7]]
    assert next_token_logits(logits[:, -1:], tokens([0, 1, 1], [1, 0, 0])).tolist() == [[4, 5], [10, 11]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("source") / "tiny", hidden_size=64, intermediate_size=128)


@pytest.fixture(scope="module")
def artifact(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What our own build makes of a tiny checkpoint."""
    from lfm2export.pipeline import build

    return build(str(tiny), dtypes=("fp32", "q4f16", "q4"), out=tmp_path_factory.mktemp("built") / "tiny-ONNX").folder


def forced(
    model: Any, prompt: list[int], answer: list[int]
) -> Iterator[tuple[np.ndarray, tuple[np.ndarray, ...], int]]:
    """Logits, caches and length after the prompt and after every token of the answer."""
    state = model.new_state()
    for chunk in [prompt, *([token] for token in answer)]:
        logits, state = model.step(np.array([chunk]), state)
        yield logits, model.read_caches(state), int(state.lengths[0])


IDS = [3, 141, 59, 26, 53, 58, 97, 93, 238, 46, 264, 338, 327, 95, 1, 288]


@pytest.mark.parametrize("prompt", [1, 5])
def test_our_fp32_file_is_the_reference_at_every_step(artifact: Path, tiny: Path, prompt: int) -> None:
    from lfm2export.reference import load_reference

    reference = forced(load_reference(tiny, "memory"), IDS[:prompt], IDS[prompt:])
    model = OnnxModel(artifact, "fp32", threads=1)
    for got, expected in zip(forced(model, IDS[:prompt], IDS[prompt:]), reference, strict=True):
        assert got[2] == expected[2]
        np.testing.assert_allclose(got[0], expected[0], atol=1e-4, rtol=0)
        for cache, held, wanted in zip(model.contract.caches, got[1], expected[1], strict=True):
            np.testing.assert_allclose(held, wanted, atol=1e-4, rtol=0, err_msg=f"{cache.past.name} after {got[2]}")


def test_greedy_tokens_are_those_of_transformers_generate(artifact: Path, tiny: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from lfm2export.generation.loop import generate

    theirs = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    expected = theirs.generate(
        torch.tensor([IDS]), max_new_tokens=24, do_sample=False, repetition_penalty=1.0, eos_token_id=-1
    )[0, len(IDS) :].tolist()
    model = fastest(OnnxModel(artifact, "fp32"))
    assert isinstance(model, BufferedModel)
    assert generate(model, IDS, max_new_tokens=24).tokens == expected


@pytest.mark.parametrize("dtype", ["fp32", "q4", "q4f16"])
def test_our_files_run_on_shared_buffers_bit_for_bit(artifact: Path, dtype: str) -> None:
    model = OnnxModel(artifact, dtype, threads=1)
    long = IDS * 20  # beyond the first capacity, so that the buffers grow on the way
    copied, shared = forced(model, long[:250], long[250:]), forced(BufferedModel(model), long[:250], long[250:])
    for one, other in zip(copied, shared, strict=True):
        assert np.array_equal(one[0], other[0])
        for cache, held, buffer in zip(model.contract.caches, one[1], other[1], strict=True):
            assert np.array_equal(held, buffer if cache.kind == "conv" else buffer[:, :, : one[2]])


@pytest.mark.parametrize("dtype", ["fp32", "q4", "q4f16"])
@pytest.mark.parametrize("buffered", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_equal_the_same_rows_alone(artifact: Path, dtype: str, buffered: bool, side: str) -> None:
    plain = OnnxModel(artifact, dtype, threads=1)
    model: Any = BufferedModel(plain) if buffered else plain
    rows = [IDS[:3], IDS[3:12], IDS[12:13]]
    ids, mask = np.zeros((3, 9), np.int64), np.zeros((3, 9), np.int64)
    for index, row in enumerate(rows):
        place = slice(9 - len(row), None) if side == "left" else slice(len(row))
        ids[index, place], mask[index, place] = row, 1
    logits, state = model.step(ids, model.new_state(3), mask)
    alone = [forced(model, row, IDS[:4]) for row in rows]
    for token in [*IDS[:4], None]:
        for index, row in enumerate(alone):
            expected, caches, length = next(row)
            np.testing.assert_allclose(logits[index], expected[0], atol=2e-5, rtol=0)
            for cache, held, wanted in zip(plain.contract.caches, model.read_caches(state), caches, strict=True):
                own = (
                    (held[index], wanted[0])
                    if cache.kind == "conv"
                    else (held[index, :, :length], wanted[0, :, :length])
                )
                np.testing.assert_allclose(own[0], own[1], atol=2e-5, rtol=0, err_msg=cache.past.name)
        if token is not None:
            logits, state = model.step(np.full((3, 1), token), state)


def test_a_folder_without_a_manifest_runs_too(artifact: Path, tmp_path: Path) -> None:
    shutil.copytree(artifact / "onnx", tmp_path / "onnx")
    shutil.copy(artifact / "config.json", tmp_path)
    mine, its = (OnnxModel(folder, "q4", threads=1) for folder in (artifact, tmp_path))
    assert np.array_equal(*(model.step(np.array([IDS]), model.new_state())[0] for model in (mine, its)))


def test_quantized_files_are_not_run_without_constant_folding(artifact: Path) -> None:
    """onnxruntime would give zeros in silence."""
    with pytest.raises(ArtifactError, match="computes zeros without constant folding"):
        OnnxModel(artifact, "q4", optimization="none")
    outputs = [OnnxModel(artifact, "q4", threads=1, optimization=level) for level in ("all", "basic")]
    first, second = (model.step(np.array([IDS]), model.new_state())[0] for model in outputs)
    np.testing.assert_allclose(first, second, atol=1e-4, rtol=0)


ESCAPE = "\x1b]0;evil\x07\x1b[31mred\nline"


def unknown_operator(model: Any) -> None:
    model.graph.node[0].op_type = model.graph.node[0].name = ESCAPE


def failing_step(model: Any) -> None:
    """The logits need what no table has."""
    import onnx

    (cast,) = (node for node in model.graph.node if "logits" in node.output)
    cast.output[0] = "whole"
    model.graph.initializer.append(onnx.helper.make_tensor("beyond", onnx.TensorProto.INT64, [1], [10**6]))
    model.graph.node.extend(
        [
            onnx.helper.make_node("Gather", ["whole", "beyond"], ["none"], name=ESCAPE, axis=2),
            onnx.helper.make_node("Add", ["whole", "none"], ["logits"], name=ESCAPE + "2"),
        ]
    )


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (unknown_operator, ArtifactError, "does not load in onnxruntime"),
        (failing_step, StepError, "onnxruntime fails at this step"),
    ],
)
def test_onnxruntime_prints_nothing_of_a_strangers(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], fault: Any, error: type[Exception], message: str
) -> None:
    import onnx

    path = write_standin(tmp_path) / "onnx" / "model.onnx"
    model = onnx.load(path)
    fault(model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(error, match=message) as caught:
        opened = OnnxModel(tmp_path)
        opened.step(tokens([1, 2]), opened.new_state())
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
