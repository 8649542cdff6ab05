"""Checkpoints: values against safetensors and transformers, and one message per refusal."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from damage import CONV, TABLE, W1, W2, change, refusal, set_config
from lfm2export.checkpoint import Checkpoint, open_checkpoint, values
from lfm2export.checkpoint import folder as module
from lfm2export.errors import ConfigError, SourceError, TensorError
from tiny import write_tiny

DTYPES = ("BF16", "F16", "F32")


@pytest.fixture(scope="module", params=DTYPES)
def held(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, dict[str, Any]]:
    """A checkpoint of each dtype, and what the safetensors library reads from it, as float32."""
    from safetensors.torch import load_file

    folder = write_tiny(tmp_path_factory.mktemp("held") / "tiny", dtype=request.param, shard_bytes=50_000)
    expected = {}
    for path in folder.glob("*.safetensors"):
        expected |= {name: value.float().numpy() for name, value in load_file(path).items()}
    return open_checkpoint(folder), expected


# --- values -----------------------------------------------------------------------------------------------------------


def test_every_tensor_is_what_the_library_reads(held: tuple[Checkpoint, dict[str, Any]]) -> None:
    checkpoint, expected = held
    assert checkpoint.tensors.keys() == expected.keys()
    for name, value in expected.items():
        got = checkpoint.rows(name, 0, value.shape[0])
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, value)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_ranges_of_rows_and_columns(held: tuple[Checkpoint, dict[str, Any]], data: st.DataObject) -> None:
    checkpoint, expected = held
    name = data.draw(st.sampled_from(sorted(expected)))
    value = expected[name]
    start = data.draw(st.integers(0, value.shape[0]))
    stop = data.draw(st.integers(start, value.shape[0]))
    np.testing.assert_array_equal(checkpoint.rows(name, start, stop), value[start:stop])
    if value.ndim == 2:
        start = data.draw(st.integers(0, value.shape[1]))
        stop = data.draw(st.integers(start, value.shape[1]))
        np.testing.assert_array_equal(checkpoint.columns(name, start, stop), value[:, start:stop])


@pytest.mark.parametrize(("chunk", "call"), [(1, 16 << 10), (7, 0), (100, 16 << 10), (1 << 18, 0), (1000, 100)])
def test_values_do_not_depend_on_the_chunks(
    held: tuple[Checkpoint, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, chunk: int, call: int
) -> None:
    """`call` 0 reads columns row by row, a large one reads whole rows."""
    checkpoint, expected = held
    monkeypatch.setattr(values, "CHUNK_VALUES", chunk)
    monkeypatch.setattr(module, "CALL_BYTES", call)
    np.testing.assert_array_equal(checkpoint.rows(W2, 3, 20), expected[W2][3:20])
    np.testing.assert_array_equal(checkpoint.columns(W2, 5, 90), expected[W2][:, 5:90])


def test_values_are_those_that_transformers_loads(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = write_tiny(tmp_path / "tiny", conv_bias=True, tie_word_embeddings=False, head_dim=32)
    checkpoint = open_checkpoint(folder)
    state = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    assert checkpoint.tensors.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(checkpoint.rows(name, 0, value.shape[0]), value.numpy())


@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values_survive(tmp_path: Path, dtype: str) -> None:
    """Zeros of both signs, subnormals, the largest and smallest values of the stored type."""
    import torch

    folder = write_tiny(tmp_path / "tiny", dtype=dtype)
    kind = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[dtype]
    limits = torch.finfo(kind)
    special = torch.tensor([0.0, -0.0, limits.max, limits.min, limits.tiny, limits.smallest_normal / 4], dtype=kind)

    def edit(tensors: dict[str, Any]) -> None:
        tensors[W1][2, :6] = special

    change(folder / "model.safetensors", edit)
    got = open_checkpoint(folder).rows(W1, 2, 3)[0, :6]
    assert got.tobytes() == special.float().numpy().tobytes()


def test_finite_values_with_an_overflowing_sum_are_no_error(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "tiny", dtype="F32")
    change(folder / "model.safetensors", lambda tensors: tensors[W1].fill_(3e38))
    assert open_checkpoint(folder).rows(W1, 0, 128).min() == np.float32(3e38)


def test_threads_read_at_once(tiny: Path) -> None:
    checkpoint = open_checkpoint(tiny)
    whole = checkpoint.rows(TABLE, 0, 512)
    wrong: list[int] = []

    def read(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(50):
            start, stop = sorted(random.integers(0, 513, size=2))
            if not np.array_equal(checkpoint.rows(TABLE, int(start), int(stop)), whole[start:stop]):
                wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_ranges_outside_the_tensor_are_refused(tiny: Path) -> None:
    checkpoint = open_checkpoint(tiny)
    for read in (
        lambda: checkpoint.rows(TABLE, 0, 513),
        lambda: checkpoint.rows(TABLE, -1, 3),
        lambda: checkpoint.rows(TABLE, 4, 3),
        lambda: checkpoint.columns(TABLE, 0, 65),
        lambda: checkpoint.columns(CONV, 0, 1),
    ):
        with pytest.raises(ValueError, match=r"no range|no matrix"):
            read()


def test_hashes(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "tiny", shard_bytes=60_000)
    told: list[tuple[int, int | None]] = []
    checkpoint = open_checkpoint(folder)
    hashes = checkpoint.hash_files(lambda stage, done, total, unit: told.append((done, total)))
    paths = sorted(folder.glob("*.safetensors"))
    assert len(paths) > 2
    assert list(hashes) == [path.name for path in paths] == [path.name for path in checkpoint.files]
    assert hashes == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    total = sum(path.stat().st_size for path in paths)
    assert max(told) == (total, total)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_inf_are_counted_and_located(tmp_path: Path, dtype: str, value: float) -> None:
    folder = write_tiny(tmp_path / "tiny", dtype=dtype)

    def edit(tensors: dict[str, Any]) -> None:
        tensors[W1][70, 3] = value
        tensors[W1][90, 5] = value

    change(folder / "model.safetensors", edit)
    checkpoint = open_checkpoint(folder)
    checkpoint.rows(W1, 0, 70)
    checkpoint.columns(W1, 6, 64)
    counts = "2 NaN and 0 Inf" if math.isnan(value) else "0 NaN and 2 Inf"
    for read in (lambda: checkpoint.rows(W1, 80, 128), lambda: checkpoint.columns(W1, 5, 6)):
        with pytest.raises(TensorError) as caught:
            read()
        assert f"{W1} in model.safetensors holds {counts}, the first at [70, 3]" in str(caught.value)


def test_a_file_cut_after_opening(tiny: Path) -> None:
    checkpoint = open_checkpoint(tiny)
    path = tiny / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    last = max(checkpoint.tensors.values(), key=lambda tensor: tensor.offset)
    with pytest.raises(SourceError, match=r"changed while it was read: it has .* bytes, expected the"):
        checkpoint.rows(last.name, 0, last.shape[0])
    path.unlink()
    with pytest.raises(SourceError, match="cannot be read"):
        checkpoint.rows(TABLE, 0, 1)


# --- the folder -------------------------------------------------------------------------------------------------------


def test_missing_folder_config_and_architecture(tmp_path: Path) -> None:
    refusal(SourceError, tmp_path / "none", "none is not a folder", "hub id")
    refusal(SourceError, tmp_path, "has no config.json", "save_pretrained")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    refusal(ConfigError, tmp_path, "'llama'", "expected 'lfm2'")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "x.pth", "last.ckpt"])
def test_pickle_only(tiny: Path, name: str) -> None:
    (tiny / "model.safetensors").rename(tiny / name)
    refusal(SourceError, tiny, f"pickle only ({name})", "expected model.safetensors", "save_pretrained")


def test_no_weights(tiny: Path) -> None:
    (tiny / "model.safetensors").unlink()
    refusal(SourceError, tiny, "has no weights", "expected model.safetensors or model.safetensors.index.json")


def test_shards_without_index(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "tiny", shard_bytes=60_000)
    (folder / "model.safetensors.index.json").unlink()
    refusal(SourceError, folder, "model-00001-of-", "no index")


# --- the index --------------------------------------------------------------------------------------------------------


def edit_index(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    edit(index)
    path.write_text(json.dumps(index))


def test_sharded_equals_single(tiny: Path, sharded: Path) -> None:
    single, many = open_checkpoint(tiny), open_checkpoint(sharded)
    assert len(many.files) > 2
    for name, tensor in single.tensors.items():
        np.testing.assert_array_equal(single.rows(name, 0, tensor.shape[0]), many.rows(name, 0, tensor.shape[0]))


@pytest.mark.parametrize("text", ["{", "[" * 100_000])
def test_index_that_is_no_json(sharded: Path, text: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(text)
    refusal(SourceError, sharded, "model.safetensors.index.json is not valid JSON")


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {}}])
def test_index_without_weight_map(sharded: Path, index: Any) -> None:
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    refusal(SourceError, sharded, "has no weight_map")


def test_index_that_is_a_list(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text("[1]")
    refusal(SourceError, sharded, "holds a JSON list, expected an object")


def test_index_names_a_missing_shard(sharded: Path) -> None:
    next(sharded.glob("model-00002*")).unlink()
    refusal(SourceError, sharded, "names model-00002-of-", "no such file")


@pytest.mark.parametrize(
    "file", ["/etc/passwd", "../tiny/model.safetensors", "a/../../b", "..\\b", "C:\\b", "\\\\host\\share\\b", "C:b"]
)
def test_index_names_a_path_outside(sharded: Path, file: str) -> None:
    edit_index(sharded, lambda index: index["weight_map"].update({W1: file}))
    refusal(SourceError, sharded, repr(file), "expected a plain name inside", "do not trust it")


@pytest.mark.parametrize("file", [None, 3, "", ["a"], "a\0b"])
def test_index_names_no_file_name(sharded: Path, file: Any) -> None:
    edit_index(sharded, lambda index: index["weight_map"].update({W1: file}))
    refusal(SourceError, sharded, f"names the file {file!r}")


def test_index_names_a_tensor_that_its_shard_lacks(sharded: Path) -> None:
    edit_index(
        sharded, lambda index: index["weight_map"].update({W1: index["weight_map"]["model.embedding_norm.weight"]})
    )
    refusal(SourceError, sharded, f"says that {W1} is in", "no such tensor")


def test_index_leaves_out_a_tensor_of_a_shard(sharded: Path) -> None:
    edit_index(sharded, lambda index: index["weight_map"].pop(W1))
    refusal(SourceError, sharded, f"holds {W1}", "does not list it")


def test_shards_may_be_links_into_the_hub_cache_and_lie_in_a_subfolder(sharded: Path, tmp_path: Path) -> None:
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "blobs").mkdir()
    sharded = sharded.rename(tmp_path / "snapshots" / "abc")
    before = open_checkpoint(sharded)
    shard = next(sharded.glob("model-00001*"))
    blob = shard.rename(tmp_path / "blobs" / "123")
    (sharded / "sub").mkdir()
    (sharded / "sub" / shard.name).symlink_to("../../../blobs/123")

    def edit(index: dict[str, Any]) -> None:
        for name, file in index["weight_map"].items():
            if file == shard.name:
                index["weight_map"][name] = f"sub/{file}"

    edit_index(sharded, edit)
    after = open_checkpoint(sharded)
    np.testing.assert_array_equal(after.rows(TABLE, 0, 512), before_rows(before, blob))
    assert f"sub/{shard.name}" in after.hash_files()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_links_out_of_the_folder_are_not_followed(tiny: Path, tmp_path: Path, name: str) -> None:
    (tiny / name).rename(tmp_path / name)
    (tiny / name).symlink_to(tmp_path / name)
    refusal(SourceError, tiny, f"{name} is a link to", "outside", "put the file itself there")


def test_a_shard_that_is_a_link_out(sharded: Path, tmp_path: Path) -> None:
    shard = next(sharded.glob("model-00001*"))
    shard.rename(tmp_path / "away")
    shard.symlink_to(tmp_path / "away")
    refusal(SourceError, sharded, f"{shard.name} is a link to", "outside")


def test_links_inside_the_folder_and_a_folder_that_is_a_link(tiny: Path, tmp_path: Path) -> None:
    (tiny / "model.safetensors").rename(tiny / "real.safetensors")
    (tiny / "model.safetensors").symlink_to("real.safetensors")
    (tmp_path / "other").symlink_to(tiny, target_is_directory=True)
    assert len(open_checkpoint(tmp_path / "other").files) == 1


def test_links_to_nothing_and_in_a_circle(tiny: Path) -> None:
    (tiny / "model.safetensors").unlink()
    (tiny / "model.safetensors").symlink_to("nothing")
    refusal(SourceError, tiny, "model.safetensors is a link to nothing")
    (tiny / "model.safetensors").unlink()
    (tiny / "model.safetensors").symlink_to("model.safetensors")
    refusal(SourceError, tiny, "model.safetensors is a link to nothing")


def before_rows(checkpoint: Checkpoint, blob: Path) -> Any:
    """The table, read from where its file has moved to."""
    tensor = checkpoint.tensors[TABLE]
    bits = np.frombuffer(blob.read_bytes(), np.uint16, math.prod(tensor.shape), tensor.offset)
    return (bits.astype(np.uint32) << 16).view(np.float32).reshape(tensor.shape)


def test_single_file_goes_before_an_index(tiny: Path, sharded: Path) -> None:
    (tiny / "model.safetensors").rename(sharded / "model.safetensors")
    assert [path.name for path in open_checkpoint(sharded).files] == ["model.safetensors"]


def test_an_incomplete_single_file_gives_way_to_an_index(tiny: Path, sharded: Path) -> None:
    change(tiny / "model.safetensors", lambda tensors: tensors.pop(W1))
    refusal(TensorError, tiny, W1)
    (tiny / "model.safetensors").rename(sharded / "model.safetensors")
    assert len(open_checkpoint(sharded).files) > 2


# --- names, shapes, dtypes --------------------------------------------------------------------------------------------


def test_missing_tensor(tiny: Path) -> None:
    def edit(tensors: dict[str, Any]) -> None:
        del tensors[W1], tensors[W2]

    change(tiny / "model.safetensors", edit)
    refusal(TensorError, tiny, f"has no tensor {W1} (and 1 more)", "save_pretrained")


def test_missing_head(tiny: Path) -> None:
    set_config(tiny, tie_word_embeddings=False)
    refusal(TensorError, tiny, "has no tensor lm_head.weight", "set tie_word_embeddings to true")


def test_extra_tensor(tiny: Path) -> None:
    change(tiny / "model.safetensors", lambda tensors: tensors.update({"model.extra.weight": tensors[CONV].clone()}))
    refusal(TensorError, tiny, "a tensor model.extra.weight in model.safetensors", "expected none but")


def test_misshaped_tensor(tiny: Path) -> None:
    change(tiny / "model.safetensors", lambda tensors: tensors.update({CONV: tensors[CONV][:, :, :2].contiguous()}))
    refusal(TensorError, tiny, f"{CONV} in model.safetensors has the shape [64, 1, 2], expected [64, 1, 3]")


@pytest.mark.parametrize("name", ["int8", "int64", "float64", "float8_e4m3fn", "bool"])
def test_wrong_dtype(tiny: Path, name: str) -> None:
    import torch

    change(tiny / "model.safetensors", lambda tensors: tensors.update({W1: tensors[W1].to(getattr(torch, name))}))
    stored = {"int8": "I8", "int64": "I64", "float64": "F64", "float8_e4m3fn": "F8_E4M3", "bool": "BOOL"}[name]
    refusal(TensorError, tiny, f"{W1} in model.safetensors is {stored}, expected F32, F16 or BF16")


def test_mixed_dtypes_are_fine(tiny: Path) -> None:
    import torch

    before = open_checkpoint(tiny).rows(W1, 0, 128)
    change(tiny / "model.safetensors", lambda tensors: tensors.update({W1: tensors[W1].to(torch.float32)}))
    np.testing.assert_array_equal(open_checkpoint(tiny).rows(W1, 0, 128), before)


def test_vocabulary_resized_by_a_fine_tuner(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "tiny", vocab_size=515)
    assert open_checkpoint(folder).spec.vocab_size == 515
    set_config(folder, vocab_size=512)
    refusal(ConfigError, folder, "vocab_size 512", "has 515 rows", "set vocab_size to 515")


# --- a head that repeats the table ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_tied_head_that_repeats_the_table(tiny: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    import torch

    monkeypatch.setattr(values, "CHUNK_VALUES", 1000)
    change(
        tiny / "model.safetensors",
        lambda tensors: tensors.update({"lm_head.weight": tensors[TABLE].to(getattr(torch, dtype), copy=True)}),
    )
    assert "lm_head.weight" not in open_checkpoint(tiny).tensors


def test_tied_head_that_differs(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "CHUNK_VALUES", 1000)

    def edit(tensors: dict[str, Any]) -> None:
        head = tensors[TABLE].clone()
        head[300, 7] += 1
        tensors["lm_head.weight"] = head

    change(tiny / "model.safetensors", edit)
    refusal(ConfigError, tiny, "lm_head.weight differs", "first at [300, 7]", "set tie_word_embeddings to false")
    set_config(tiny, tie_word_embeddings=False)
    assert "lm_head.weight" in open_checkpoint(tiny).tensors


def test_tied_head_of_another_shape(tiny: Path) -> None:
    change(tiny / "model.safetensors", lambda tensors: tensors.update({"lm_head.weight": tensors[TABLE][:500].clone()}))
    refusal(ConfigError, tiny, "[500, 64]", "[512, 64]", "tie_word_embeddings")
