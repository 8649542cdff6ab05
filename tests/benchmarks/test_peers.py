"""What is ours: names, shapes, arguments. That the peers compute the same model `benchmarks.peers check` proves."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.peers import genai, gguf_layout, locate
from lfm2export.checkpoint import open_checkpoint
from lfm2export.hub import shipped_folder
from lfm2export.spec import CONV, parse_spec
from lfm2export.synth import family_config


def test_every_tensor_of_the_checkpoint_has_one_place_in_gguf() -> None:
    spec = parse_spec(family_config("2.6B"))
    placed = {tensor.source: tensor for tensor in gguf_layout.tensors(spec)}
    assert placed.keys() == spec.source_tensors().keys()
    assert len({tensor.name for tensor in placed.values()}) == len(placed)


def test_projections_stay_as_they_are_and_the_kernel_becomes_a_float32_matrix() -> None:
    placed = {tensor.source: tensor for tensor in gguf_layout.tensors(parse_spec(family_config("350M")))}
    gate = placed["model.layers.2.feed_forward.w1.weight"]
    assert (gate.name, gate.shape, gate.matrix) == ("blk.2.ffn_gate.weight", (4608, 1024), True)
    kernel = placed["model.layers.0.conv.conv.weight"]
    assert (kernel.name, kernel.shape, kernel.matrix) == ("blk.0.shortconv.conv.weight", (1024, 3), False)
    norm = placed["model.embedding_norm.weight"]
    assert (norm.name, norm.matrix) == ("token_embd_norm.weight", False)


def test_a_bias_is_refused_because_llama_cpp_has_no_place_for_it() -> None:
    spec = parse_spec(family_config("350M") | {"conv_bias": True})
    with pytest.raises(KeyError, match="bias"):
        list(gguf_layout.tensors(spec))


def test_conv_layers_are_marked_by_no_key_value_heads() -> None:
    spec = open_checkpoint(shipped_folder()).spec
    heads = gguf_layout.numbers(spec)["attention.head_count_kv"]
    assert heads == [0 if kind == CONV else spec.num_key_value_heads for kind in spec.layer_types]


def test_the_vendors_recipe_on_the_builders_command_line() -> None:
    line = genai.arguments(Path("in"), Path("out"), "vendor")
    assert line[:2] == ["-m", "onnxruntime_genai.models.builder"]
    assert line[line.index("-p") + 1] == "int4"
    options = line[line.index("--extra_options") + 1 :]
    assert "algo_config=k_quant" in options
    assert "matmul_mixed_precision=last_matmul:int8,mixed_layers:int8" in options
    assert "--extra_options" not in genai.arguments(Path("in"), Path("out"), "fp32")


def test_a_peer_that_is_not_installed_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(locate.VARIABLES["llama"], str(tmp_path))
    with pytest.raises(locate.PeerError, match=r"setup\.sh llama"):
        locate.python_of("llama")
