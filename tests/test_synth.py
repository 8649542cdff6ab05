"""Random checkpoints: shapes, determinism, no trivial weights, healthy activations, nothing half-written."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfm2export import synth
from lfm2export.checkpoint import open_checkpoint
from lfm2export.errors import ConfigError, OutputError, SourceError
from lfm2export.spec import parse_spec
from lfm2export.synth import FAMILY, family_config, write_custom, write_synth
from lfm2export.text.tokenizer_file import check_tokenizer, read_tokenizer_file
from tiny import tiny_config, write_companions, write_tiny

#: The keys of the released configs.
HUB_KEYS = [
    "architectures",
    "block_auto_adjust_ff_dim",
    "block_dim",
    "block_ff_dim",
    "block_ffn_dim_multiplier",
    "block_mlp_init_scale",
    "block_multiple_of",
    "block_norm_eps",
    "block_out_init_scale",
    "block_use_swiglu",
    "block_use_xavier_init",
    "bos_token_id",
    "conv_L_cache",
    "conv_bias",
    "conv_dim",
    "conv_dim_out",
    "conv_use_xavier_init",
    "eos_token_id",
    "full_attn_idxs",
    "hidden_size",
    "initializer_range",
    "max_position_embeddings",
    "model_type",
    "norm_eps",
    "num_attention_heads",
    "num_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "rope_theta",
    "theta",
    "tie_embedding",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "use_pos_enc",
    "vocab_size",
]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture
def companions(tmp_path: Path) -> Path:
    folder = tmp_path / "companions"
    folder.mkdir()
    write_companions(folder)
    return folder


@pytest.fixture
def small_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """A "1M" among the released sizes, so that the command's way can be walked in a moment."""
    monkeypatch.setitem(FAMILY, "1M", (128, 8, 4, 192, True, (1, 3)))
    real = synth.family_config
    monkeypatch.setattr(synth, "family_config", lambda size: real(size) | {"vocab_size": 600})


@pytest.mark.parametrize("size", FAMILY)
def test_configs_have_the_keys_of_the_hub(size: str) -> None:
    config = family_config(size)
    assert list(config) == HUB_KEYS
    spec = parse_spec(config)
    assert (spec.vocab_size, spec.num_key_value_heads, spec.head_dim) == (65536, 8, 64)
    assert len(spec.attention_layers) == (8 if size == "2.6B" else 6)


def test_no_such_size(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no LFM2 of size '3B', expected one of 350M, 700M, 1\.2B, 2\.6B"):
        write_synth("3B", tmp_path / "out")


def test_a_checkpoint_whole(tmp_path: Path, companions: Path, small_family: None) -> None:
    told: list[tuple[int, int | None]] = []
    folder = write_synth(
        "1M",
        tmp_path / "out",
        companions=companions,
        progress=lambda stage, done, total, unit: told.append((done, total)),
    )
    checkpoint = open_checkpoint(folder)
    check_tokenizer(read_tokenizer_file(folder), checkpoint.spec.vocab_size)
    assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {"BF16"}
    assert told[-1] == (2 * checkpoint.spec.num_parameters,) * 2
    names = {path.name for path in folder.iterdir()}
    assert names == {path.name for path in companions.iterdir()} | {"config.json", "model.safetensors", "README.md"}
    assert "license: apache-2.0" in (folder / "README.md").read_text()
    assert list(tmp_path.glob(".*")) == []


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path: Path, companions: Path, small_family: None) -> None:
    first, again, other = (
        digests(write_synth("1M", tmp_path / name, seed=seed, companions=companions))
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert first == again
    assert first["model.safetensors"] != other["model.safetensors"]


def test_pieces_do_not_change_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = digests(write_tiny(tmp_path / "whole"))
    monkeypatch.setattr(synth, "PIECE_BYTES", 1000)
    assert digests(write_tiny(tmp_path / "pieces")) == whole


@pytest.mark.parametrize("limit", [1, 40_000, 10**9])
def test_shards(tmp_path: Path, limit: int) -> None:
    single = open_checkpoint(write_tiny(tmp_path / "single"))
    folder = write_tiny(tmp_path / "sharded", shard_bytes=limit)
    sharded = open_checkpoint(folder)
    for name, tensor in single.tensors.items():
        rows = tensor.shape[0]
        np.testing.assert_array_equal(sharded.rows(name, 0, rows), single.rows(name, 0, rows))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * single.spec.num_parameters
    held: dict[str, list[int]] = {}
    for name, file in index["weight_map"].items():
        held.setdefault(file, []).append(sharded.tensors[name].nbytes)
    assert all(sum(sizes) <= limit or len(sizes) == 1 for sizes in held.values())
    assert sorted(held) == [f"model-{i:05}-of-{len(held):05}.safetensors" for i in range(1, len(held) + 1)]


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_the_library_reads_every_dtype(tmp_path: Path, dtype: Any) -> None:
    from safetensors.torch import load_file

    config = tiny_config(conv_bias=True, tie_word_embeddings=False, conv_L_cache=4, head_dim=32)
    folder = write_custom(config, tmp_path / "out", dtype=dtype)
    tensors = load_file(folder / "model.safetensors")
    assert {name: tuple(value.shape) for name, value in tensors.items()} == parse_spec(config).source_tensors()
    assert {str(value.dtype) for value in tensors.values()} == {
        {"BF16": "torch.bfloat16", "F16": "torch.float16", "F32": "torch.float32"}[dtype]
    }


def test_rounding_to_bfloat16_is_torchs() -> None:
    import torch

    values = np.random.default_rng(0).standard_normal(100_000, dtype=np.float32)
    values[:3] = [1.00390625, 1.01171875, -1.00390625]  # ties, to even: down, up, down
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    np.testing.assert_array_equal(synth._round(values, "BF16"), expected)


def test_weights_are_not_trivial(tmp_path: Path) -> None:
    """No constant tensor, no two rows alike up to sign, no two tensors alike, every projection centred."""
    checkpoint = open_checkpoint(
        write_tiny(tmp_path / "tiny", vocab_size=4096, hidden_size=256, num_attention_heads=16)
    )
    seen: set[bytes] = set()
    for name, tensor in checkpoint.tensors.items():
        values = checkpoint.rows(name, 0, tensor.shape[0])
        assert values.std() > 0.01, name
        assert values.tobytes() not in seen
        seen.add(values.tobytes())
        if len(tensor.shape) != 2:
            continue
        assert len({row.tobytes() for row in np.abs(values)}) == len(values), name
        assert abs(values.mean()) < 0.01 * values.std() * 3 + 3 * values.std() / np.sqrt(len(values)), name
        flipped = np.count_nonzero(values[:, 0] < 0) / len(values)
        assert 0.3 < flipped < 0.7, name


def activations(folder: Path, layers: int | None = None) -> tuple[list[float], float]:
    """Root mean square after each layer, and the deviation of the logits, by transformers, of the first layers."""
    import torch
    from transformers import AutoConfig, Lfm2ForCausalLM

    config = json.loads((folder / "config.json").read_text())
    if layers is not None:
        config["num_hidden_layers"] = layers
        config["full_attn_idxs"] = [i for i in config["full_attn_idxs"] if i < layers]
    settings = AutoConfig.for_model(
        **{key: value for key, value in config.items() if key != "model_type"}, model_type="lfm2"
    )
    model = Lfm2ForCausalLM.from_pretrained(folder, config=settings, dtype=torch.float32)
    ids = torch.randint(0, config["vocab_size"], (1, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        result = model(ids, output_hidden_states=True)
    return [h.pow(2).mean().sqrt().item() for h in result.hidden_states[1:]], result.logits.std().item()


def assert_healthy(levels: list[float], deviation: float) -> None:
    assert all(0.1 < level < 100 for level in levels), levels
    assert 0.5 < deviation < 10, deviation


@pytest.mark.parametrize("layers", [4, 30])
def test_activations_stay_healthy(tmp_path: Path, layers: int) -> None:
    kinds = ["full_attention" if i % 4 == 2 else "conv" for i in range(layers)]
    folder = write_tiny(
        tmp_path / "tiny", hidden_size=256, intermediate_size=1344, num_attention_heads=8, layer_types=kinds
    )
    assert_healthy(*activations(folder))


@pytest.mark.large
def test_350m_at_full_size(tmp_path: Path, companions: Path) -> None:
    folder = write_synth("350M", tmp_path / "out", companions=companions)
    assert open_checkpoint(folder).spec.num_parameters == 354_483_968
    assert_healthy(*activations(folder))


def test_memory_is_bounded_by_pieces(tmp_path: Path) -> None:
    """A tensor of 64 MB, written with less than half of that."""
    config = tiny_config(vocab_size=131072, hidden_size=256, num_attention_heads=16)
    tracemalloc.start()
    try:
        write_custom(config, tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 64 << 20
    assert peak < 40 << 20, peak


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_an_empty_folder_may_be_there(tmp_path: Path) -> None:
    write_tiny(tmp_path / "out" / "deep")
    (tmp_path / "empty").mkdir()
    open_checkpoint(write_tiny(tmp_path / "empty"))


def test_a_folder_that_is_not_empty_stays(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="exists and is not an empty folder"):
        write_tiny(tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"
    with pytest.raises(OutputError, match="exists and is not an empty folder"):
        write_tiny(tmp_path / "out" / "thesis.txt")


def test_nothing_is_left_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, name: str, shape: Any) -> Any:
        yield np.zeros(8, np.uint16)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(synth._Gaussian, "pieces", fail)
    with pytest.raises(OutputError, match="no space left on device"):
        write_tiny(tmp_path / "parent" / "out")
    assert list(tmp_path.iterdir()) == []


def test_companions_without_a_tokenizer(tmp_path: Path, small_family: None) -> None:
    with pytest.raises(SourceError, match=r"has no tokenizer\.json"):
        write_synth("1M", tmp_path / "out", companions=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_custom_config_that_is_no_lfm2(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no vocab_size"):
        write_custom(tiny_config(vocab_size=None), tmp_path / "out")
