"""Calibration of a tiny checkpoint: what it decides, that files hold it, and that threads do not show in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

import lfm2export.calibrate as calibrate_package
from lfm2export.calibrate import Calibrated, calibrate
from lfm2export.calibrate.activations import HELD_OUT, Scratch, Sequences, output_error, second_moments, workers
from lfm2export.calibrate.gradients import output_moments
from lfm2export.calibrate.layers import Stream
from lfm2export.calibrate.text import CalibrationText
from lfm2export.checkpoint import EMBEDDING, Checkpoint, open_checkpoint
from lfm2export.cli import main
from lfm2export.errors import Lfm2ExportError, PromptError
from lfm2export.matrices import matrices
from lfm2export.pipeline import build
from lfm2export.quant import dequantize, quantize
from lfm2export.recipes import Calibration, Options
from lfm2export.reference import load_reference
from lfm2export.reference.run import Run
from lfm2export.reference.stream import StreamReference
from lfm2export.reference.weights import SourceWeights
from lfm2export.verify.stored import read_stored
from lfm2export.weights import BlockFormat
from tiny import write_tiny

Q4, Q4_WIDE, Q8 = BlockFormat(4, 32, False), BlockFormat(4, 128, False), BlockFormat(8, 32, True)
W2 = "model.layers.2.feed_forward.w2.weight"


def text(sequences: int = 20, length: int = 48, seed: int = 0) -> CalibrationText:
    random = np.random.default_rng(seed)
    drawn = (random.integers(0, 512, length - number % 3).tolist() for number in range(sequences))
    return CalibrationText("drawn", tuple(tuple(one) for one in drawn))


def format_of(parts: tuple[str, ...]) -> BlockFormat | None:
    """Three formats in one model."""
    return Q8 if parts == (EMBEDDING,) else Q4_WIDE if parts == (W2,) else Q4


@pytest.fixture(scope="module")
def checkpoint(tiny_source: Path) -> Checkpoint:
    return open_checkpoint(tiny_source)


@pytest.fixture(scope="module")
def calibrated(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Calibrated:
    return calibrate(checkpoint, format_of, text(), tmp_path_factory.mktemp("calibrated"), threads=2)


def test_every_matrix_of_every_layer_is_decided_in_its_format(checkpoint: Checkpoint, calibrated: Calibrated) -> None:
    expected = [matrix.parts for matrix in matrices(checkpoint.spec) if matrix.layer is not None]
    assert [choice.parts for choice in calibrated.choices] == expected
    for choice in calibrated.choices:
        assert choice.format == format_of(choice.parts)
        assert choice.after <= choice.before
        for part in choice.parts:
            rows, columns = checkpoint.tensors[part].shape
            blocks = calibrated.store.prepared(part, 0, rows, choice.format)
            assert blocks is not None
            values = dequantize(blocks, choice.format, columns)
            source = checkpoint.rows(part, 0, rows)
            assert np.abs(values - source).max() < 0.5 * np.abs(source).max()
    moved = ("gptq", "descent", "coupled")
    assert sum(choice.method in moved for choice in calibrated.choices) > len(expected) / 2
    assert any(choice.method == "coupled" for choice in calibrated.choices)


def test_bytes_do_not_depend_on_threads(checkpoint: Checkpoint, calibrated: Calibrated, tmp_path: Path) -> None:
    alone = calibrate(checkpoint, format_of, text(), tmp_path, threads=1)
    assert alone.choices == calibrated.choices
    found = sorted(tmp_path.glob("*.npy"))
    assert len(found) > 30
    for path in found:
        assert path.read_bytes() == (calibrated.store.folder / path.name).read_bytes(), path.name


@pytest.mark.parametrize("small", [True, False])
def test_a_choice_is_the_best_on_held_out_inputs(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: bool
) -> None:
    """Its figures, computed again from the reference's own activations: the first matrix sees no rounding but the
    table's. A small model's tokens and outputs count as its gradients say.
    """
    monkeypatch.setattr(calibrate_package, "SMALL", checkpoint.spec.num_parameters + small)
    for name in ("work", "gradients"):
        (tmp_path / name).mkdir()
    calibrated = calibrate(checkpoint, format_of, text(), tmp_path / "work", threads=1)
    assert (calibrated.tuned is not None) is small
    found = calibrated.choices[0]
    sequences = Sequences.split(text().sequences)
    name = "model.layers.0.conv.in_proj.weight"
    table = checkpoint.rows(EMBEDDING, 0, 512)
    rounded = dequantize(quantize(table, Q8), Q8, table.shape[1]).astype(np.float64)
    held = np.concatenate([rounded[list(one)] for one in sequences.tokens[sequences.fitted :]])
    norm = checkpoint.rows("model.layers.0.operator_norm.weight", 0, 64)
    inputs = held / np.sqrt((held**2).mean(axis=1, keepdims=True) + checkpoint.spec.norm_eps) * norm
    tokens, outputs = np.ones(sequences.rows), np.eye(192)
    if small:
        with workers(1) as pool, torch.no_grad():
            moments = output_moments(checkpoint, sequences, Scratch(tmp_path / "gradients"), pool)
        tokens, outputs = moments.weights([name]), moments.held_out(name)
        assert tokens[: sequences.fitted_rows].mean() == pytest.approx(1, rel=1e-5)
    weight = checkpoint.rows(name, 0, 192)

    def error(of: np.ndarray) -> float:
        products = inputs @ of.T
        return float(np.einsum("tn,nm,tm,t->", products, outputs, products, tokens[sequences.fitted_rows :]))

    plain = weight - dequantize(quantize(weight, Q4), Q4, 64)
    assert found.before == pytest.approx(error(plain) / error(weight), rel=1e-4)
    assert found.after < found.before


def test_a_stream_without_rounding_is_the_reference(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The loop's hidden states after each layer, and at the end, are those of transformers' model."""
    reference = StreamReference(SourceWeights(checkpoint))
    sequences = Sequences.split(text(3).sequences)
    with workers(2) as pool:
        stream = Stream(reference, sequences, Scratch(tmp_path), pool)
        for layer in range(checkpoint.spec.num_hidden_layers):
            stream.enter(layer)
            former = None
            for index in range(len(stream.linears)):
                former = stream.inputs(index, former)
            assert former is not None
            stream.finish(former)
    traces = load_reference(checkpoint.folder, "memory").run([Run.prefill(one, None) for one in sequences.tokens])
    norm = checkpoint.rows("model.embedding_norm.weight", 0, 64)
    for (start, stop), trace in zip(sequences.ranges(), traces, strict=True):
        hidden = stream.hidden[start:stop].astype(np.float64)
        normed = hidden / np.sqrt((hidden**2).mean(axis=1, keepdims=True) + checkpoint.spec.norm_eps) * norm
        np.testing.assert_allclose(normed, trace.hidden, rtol=0, atol=2e-5 * np.abs(trace.hidden).max())


def test_biases_and_an_untied_head_change_nothing(tmp_path: Path) -> None:
    odd = open_checkpoint(write_tiny(tmp_path / "odd", conv_bias=True, tie_word_embeddings=False, hidden_size=96))
    (tmp_path / "work").mkdir()
    found = calibrate(odd, lambda parts: Q4, text(8), tmp_path / "work", threads=1)
    assert len(found.choices) == 16
    assert all(choice.after <= choice.before < 0.1 for choice in found.choices)


def test_matrices_without_a_format_stay_as_they_are(checkpoint: Checkpoint, tmp_path: Path) -> None:
    found = calibrate(checkpoint, lambda parts: Q4 if parts == (W2,) else None, text(8), tmp_path, threads=1)
    assert [choice.parts for choice in found.choices] == [(W2,)]


def test_one_sequence_in_eight_is_held_out() -> None:
    sequences = Sequences.split(text(20).sequences)
    assert len(sequences.tokens) == 20 and sequences.fitted == 20 - 20 // HELD_OUT
    assert sorted(sequences.tokens) == sorted(text(20).sequences)
    assert sequences.ranges()[-1][1] == sequences.rows == sum(map(len, sequences.tokens))
    assert Sequences.split([(1, 2), (3, 4)]) == Sequences(((1, 2), (3, 4)), 1)
    with pytest.raises(PromptError, match="1 sequence"):
        Sequences.split([(1, 2, 3)])


def test_second_moments_and_errors_are_sums_over_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lfm2export.calibrate.activations.TILE", 32)
    monkeypatch.setattr("lfm2export.calibrate.activations.TOKENS", 50)
    inputs = np.random.default_rng(0).standard_normal((170, 70), dtype=np.float32)
    exact = inputs.astype(np.float64)
    with workers(3) as pool:
        moments = second_moments(inputs, Scratch(tmp_path).array("moments", (70, 70)), pool)
    np.testing.assert_allclose(moments, exact.T @ exact / 170, rtol=0, atol=1e-5)
    np.testing.assert_allclose(moments, moments.T, rtol=0, atol=1e-6)
    error = np.random.default_rng(1).standard_normal((5, 70), dtype=np.float32)
    assert output_error(error, inputs) == pytest.approx(((exact @ error.T) ** 2).sum(), rel=1e-5)


def test_torch_keeps_its_threads() -> None:
    before = torch.get_num_threads()
    with workers(3):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


@pytest.fixture(scope="module")
def built(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = Options(calibration=Calibration(tokens=2048))
    return build(
        str(tiny_source), dtypes=["q8", "q4", "q4f16"], options=options, out=tmp_path_factory.mktemp("b") / "x"
    ).folder


def stored_values(folder: Path, file: str, checkpoint: Checkpoint) -> Callable[[str], Any]:
    path = folder / "onnx" / file
    stored = read_stored(onnx.load(str(path), load_external_data=False), path.parent, checkpoint.spec)
    return lambda name: stored.override(name, 0, checkpoint.tensors[name].shape[0])


def test_files_hold_what_was_decided(built: Path, tiny_source: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Both 4-bit files the same blocks; the 8-bit file those of a build without calibration."""
    plain = build(str(tiny_source), dtypes=["q8", "q4"], out=tmp_path / "plain").folder
    q4, q4f16, before = (
        stored_values(folder, f"model_{name}.onnx", checkpoint)
        for folder, name in ((built, "q4"), (built, "q4f16"), (plain, "q4"))
    )
    moved = 0
    for name in (part for matrix in matrices(checkpoint.spec) for part in matrix.parts):
        np.testing.assert_array_equal(q4(name), q4f16(name))
        moved += not np.array_equal(q4(name), before(name))
    assert moved > 10
    data = "onnx/model_quantized.onnx_data"
    assert (built / data).read_bytes() == (plain / data).read_bytes()


def test_the_manifest_says_what_was_decided(built: Path) -> None:
    recipe = json.loads((built / "build.json").read_text())["recipe"]
    assert recipe["q8"]["calibration"] is None
    found = recipe["q4"]["calibration"]
    assert found == recipe["q4f16"]["calibration"]
    assert found["text"] == "shipped" and 1024 < found["tokens"] <= 2048
    assert len(found["matrices"]) == 16
    for entry in found["matrices"]:
        gate_up = entry["parts"][0].endswith("w1.weight")
        assert entry["format"] == {"bits": 4, "block_size": 32, "symmetric": gate_up}
        assert entry["method"] in ("plain", "weighted", "gptq", "descent", "coupled")
        assert 0 < entry["error_after"] <= entry["error_before"]
    assert not any(path.name.startswith(".") for path in built.iterdir())


def test_the_same_build_twice_is_the_same_bytes(built: Path, tiny_source: Path, tmp_path: Path) -> None:
    options = Options(calibration=Calibration(tokens=2048))
    again = build(str(tiny_source), dtypes=["q4"], options=options, out=tmp_path / "x", threads=1).folder
    for name in ("onnx/model_q4.onnx", "onnx/model_q4.onnx_data"):
        assert sha256((again / name).read_bytes()).digest() == sha256((built / name).read_bytes()).digest()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--calibration-tokens", "4096"], "add --calibrate"),
        (["--calibrate", "--dtype", "fp16"], "add --dtype q4"),
        (["--calibrate", "--calibration-text", "no-such.txt"], "no-such.txt"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_in_one_line(
    tiny_source: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    result = CliRunner().invoke(main, ["build", str(tiny_source), "-o", str(tmp_path / "out"), "-q", *arguments])
    assert result.exit_code == 2
    [line] = result.output.strip().splitlines()
    assert said in line
    assert not any(tmp_path.iterdir())


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(Lfm2ExportError, match="expected at least 1024"):
        replace(Calibration(), tokens=1000)
