"""The header of a safetensors file: damage of every kind, within bounds of time and memory."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from damage import W1, refusal, write_parts
from lfm2export.checkpoint import header as module
from lfm2export.checkpoint import values
from lfm2export.errors import SourceError, TensorError
from tiny import write_tiny


@pytest.fixture(scope="module", params=["BF16", "F16", "F32"])
def shard(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest shard of a checkpoint of each dtype."""
    folder = write_tiny(tmp_path_factory.mktemp("held") / "tiny", dtype=request.param, shard_bytes=50_000)
    return min(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)


def test_truncated_file(tiny: Path) -> None:
    path = tiny / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    refusal(
        SourceError, tiny, "is truncated", f"{len(content) - 1} bytes, expected {len(content)}", "download it again"
    )
    for size in (0, 5, 8, 100):
        path.write_bytes(content[:size])
        refusal(SourceError, tiny, "truncated", f"{size} bytes")


def test_trailing_bytes(tiny: Path) -> None:
    with (tiny / "model.safetensors").open("ab") as out:
        out.write(b"abc")
    refusal(SourceError, tiny, "has 3 bytes after its last tensor")


def test_header_length_beyond_the_file_and_beyond_reason(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny / "model.safetensors"
    monkeypatch.setattr(module, "MAX_HEADER_BYTES", 100)
    refusal(SourceError, tiny, "no safetensors file", "expected at most 100")
    monkeypatch.undo()
    path.write_bytes(struct.pack("<Q", 1 << 60) + path.read_bytes()[8:])
    refusal(SourceError, tiny, "truncated", f"a header of {1 << 60} bytes")


def test_git_lfs_pointer(tiny: Path) -> None:
    (tiny / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    refusal(SourceError, tiny, "Git LFS pointer", "git lfs pull")


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff\xff", b"null", b"[" * 100_000, b" {}", b"\xef\xbb\xbf{}"])
def test_header_that_is_no_json_object(tiny: Path, text: bytes) -> None:
    (tiny / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    refusal(SourceError, tiny, "model.safetensors is damaged: its header is not ", "download it again")


@pytest.mark.parametrize(
    "entry",
    [
        7,
        {"dtype": "F32", "shape": [1]},
        {"dtype": 3, "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": 4, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]},
        {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": {"0": 1, "4": 2}},
        {"dtype": "F32", "shape": [1] * 9, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1 << 63], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [1 << 63, (1 << 63) + 4]},
        {"dtype": "F32", "shape": [None], "data_offsets": [0, 4]},
        [],
        None,
    ],
)
def test_malformed_entries(tiny: Path, entry: Any) -> None:
    write_parts(tiny / "model.safetensors", {W1: entry}, b"\0" * 8)
    refusal(SourceError, tiny, f"the header's entry of {W1}", "expected dtype, shape and data_offsets")


def test_entry_whose_bytes_do_not_fit_its_shape(tiny: Path) -> None:
    write_parts(tiny / "model.safetensors", {W1: {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 8]}}, b"\0" * 8)
    refusal(SourceError, tiny, f"{W1} has 8 bytes, expected 12 for BF16 [2, 3]")


@pytest.mark.parametrize(("begin", "what"), [(2, "overlaps a"), (6, "leaves a gap after a")])
def test_overlapping_and_gapped_offsets(tiny: Path, begin: int, what: str) -> None:
    header = {
        "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [begin, begin + 4]},
    }
    write_parts(tiny / "model.safetensors", header, b"\0" * 10)
    refusal(SourceError, tiny, "is damaged", f"b {what}", f"starts at {begin}, expected 4")


def test_offsets_beyond_the_data(tiny: Path) -> None:
    header = {"a": {"dtype": "F32", "shape": [10], "data_offsets": [0, 40]}}
    write_parts(tiny / "model.safetensors", header, b"\0" * 10)
    refusal(SourceError, tiny, "is truncated")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"NAME": 1, "NAME": 2}', f"an object has the key '{W1}' twice"),
        ('{"NAME": {"dtype": "F32", "dtype": "F16"}}', "an object has the key 'dtype' twice"),
        ('{"__metadata__": {"a": 1}}', "holds more than strings in __metadata__"),
        ('{"__metadata__": []}', "holds more than strings in __metadata__"),
        ('{"NAME": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 4]}}', "the number 1e999 is too large"),
        ('{"NAME": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}', "NaN is no JSON number"),
        ('{"NAME": ' + "9" * 5000 + "}", "the number 99999999999999999999... of 5,000 digits is too large"),
    ],
)
def test_headers_that_readers_take_differently(tiny: Path, text: str, said: str) -> None:
    data = text.replace("NAME", W1).encode()
    (tiny / "model.safetensors").write_bytes(struct.pack("<Q", len(data)) + data)
    refusal(SourceError, tiny, "model.safetensors is damaged: its header", said)


def test_names_in_messages_have_no_line_break(tiny: Path) -> None:
    write_parts(tiny / "model.safetensors", {"a\nb": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"\0" * 4)
    refusal(SourceError, tiny, "'a\\nb' has 4 bytes, expected 8 for F32 [2]")
    write_parts(
        tiny / "model.safetensors", {"a\nb": {"dtype": "I\n8", "shape": [4], "data_offsets": [0, 4]}}, b"\0" * 4
    )
    refusal(TensorError, tiny, "has no tensor model.embed_tokens.weight")


def test_tensors_of_no_size_count_as_misshaped(tiny: Path) -> None:
    entry = {"dtype": "BF16", "shape": [0, module.MAX_NUMBER], "data_offsets": [0, 0]}
    write_parts(tiny / "model.safetensors", {"model.embed_tokens.weight": entry}, b"")
    refusal(TensorError, tiny, "has no tensor model.layers.0")


BOUNDED = """
import sys, time
from pathlib import Path
from lfm2export.bench.memory import peak_resident_bytes
from lfm2export.checkpoint.header import read_header
from lfm2export.errors import SourceError
started = time.process_time()
try:
    read_header(Path(sys.argv[1]))
except SourceError as error:
    print(error)
print(time.process_time() - started, (peak_resident_bytes() or 0) / 1e6)
"""


@pytest.mark.parametrize(
    ("unit", "size"),
    [
        ("[],", 100_000_000),
        ("[],", 15_000_000),
        ("[],", 3_000_000),
        ('"a":1,', 4_000_000),
        ("0,", 8_000_000),
        ("[[[[[[[[", 2_000_000),
        ('"{:09d}":0,', 12_000_000),
    ],
)
def test_any_header_takes_bounded_time_and_memory(tmp_path: Path, unit: str, size: int) -> None:
    """In a process of its own, whose memory counts from nothing."""
    count = size // len(unit.format(0) if "{" in unit else unit)
    text = "".join(unit.format(i) for i in range(count)) if "{" in unit else unit * count
    data = ("{" + text if '"' in unit else '{"a":[' + text).encode()
    path = tmp_path / "large.safetensors"
    path.write_bytes(struct.pack("<Q", len(data)) + data)
    ran = subprocess.run([sys.executable, "-c", BOUNDED, path], capture_output=True, text=True, check=True)
    message, figures = ran.stdout.splitlines()
    seconds, megabytes = map(float, figures.split())
    assert str(path) in message
    assert seconds < 2 and megabytes < 1000, ran.stdout


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_damaged_header_is_refused_whenever_the_library_refuses_it(shard: Path, data: st.DataObject) -> None:
    """Bytes of the header changed, or the file cut or grown: a SourceError or an intact reading, nothing else."""
    from safetensors import SafetensorError, safe_open

    content = bytearray(shard.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, 8 + length - 1))
        content[at] = data.draw(st.sampled_from([*b'0123456789"[]{},: abF', 0, 255, content[at] ^ 1]))
    content = content[: data.draw(st.sampled_from([len(content)] * 4 + [len(content) - 1, length, 3]))]
    path = shard.parent.parent / "damaged.safetensors"
    path.write_bytes(content)
    try:
        with safe_open(path, "np") as file:
            theirs = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError:
        theirs = None
    try:
        ours = module.read_header(path)
    except SourceError:
        return
    if all(tensor.dtype in values.ITEM_BYTES for tensor in ours.values()):  # others are refused by name, later
        assert {name: tensor.shape for name, tensor in ours.items()} == theirs
