"""The runtime: finding and checking a file, the rules of a step, and the buffered loop against the copying one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from standin import CONFIG, write_standin

from lfm2export.errors import ArtifactError, ConfigError, StepError
from lfm2export.runtime import BufferedModel, OnnxModel, available_models, find_model
from lfm2export.spec import parse_spec
from lfm2export.steps import next_token_logits, step_inputs


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
    with pytest.raises(ArtifactError, match="does not load in onnxruntime") as caught:
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
