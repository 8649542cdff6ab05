"""The header of one safetensors file: 8 bytes of length, then JSON of that length that says where each tensor lies."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfm2export.checkpoint.values import ITEM_BYTES, Stamp, opened
from lfm2export.errors import SourceError
from lfm2export.untrusted.json_reader import MAX_BYTES, parse_json
from lfm2export.untrusted.paths import named, shown

#: As any JSON document from outside: 100,000 tensors. The library that defines the format takes 100 MB, of which a
#: header of empty lists makes 3 GB of memory.
MAX_HEADER_BYTES = MAX_BYTES
#: Axes of a tensor; those of the family have at most 3. A product of many huge sizes takes for ever.
MAX_AXES = 8
#: Sizes and offsets are 64-bit in every other reader.
MAX_NUMBER = (1 << 63) - 1

DOWNLOAD_AGAIN = "copy or download it again"


@dataclass(frozen=True)
class RawTensor:
    """A header's entry, before its dtype and shape are known to be the expected ones."""

    name: str
    file: Path
    stamp: Stamp
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(path: Path) -> dict[str, RawTensor]:
    """The entries of one safetensors file. Offsets must cover the data exactly, as the format says.

    Raises:
        SourceError: the file cannot be read, is truncated or damaged, or names a tensor twice.
    """
    with opened(path) as file:
        stamp = Stamp.of(os.fstat(file.fileno()))
        size = stamp.size
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if start == b"version ":
            raise SourceError(f"{path} is a Git LFS pointer, expected the weights; run `git lfs pull` in its folder")
        if len(start) < 8 or 8 + length > size:
            wanted = (
                f"expected a header of {length} bytes after the first 8" if len(start) == 8 else "expected 8 or more"
            )
            raise SourceError(f"{path} is no safetensors file or truncated: {size} bytes, {wanted}; {DOWNLOAD_AGAIN}")
        if length > MAX_HEADER_BYTES:
            raise SourceError(
                f"{path} is no safetensors file: a header of {length} bytes, expected at most {MAX_HEADER_BYTES}; "
                f"{DOWNLOAD_AGAIN}"
            )
        text = file.read(length)
    what = f"{path} is damaged: its header"
    header = parse_json(text, what, SourceError, DOWNLOAD_AGAIN)
    if not isinstance(header, dict) or not text.startswith(b"{"):
        raise SourceError(f"{what} is not a JSON object from its first byte on; {DOWNLOAD_AGAIN}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise SourceError(f"{what} holds more than strings in __metadata__; {DOWNLOAD_AGAIN}")
    tensors = {name: _entry(path, stamp, name, entry, 8 + length) for name, entry in header.items()}
    _check_layout(path, tensors, 8 + length, size)
    return tensors


def _entry(path: Path, stamp: Stamp, name: str, entry: Any, data: int) -> RawTensor:
    if not _is_entry(entry):
        raise SourceError(
            f"{path} is damaged: the header's entry of {named(name)} is {shown(entry)}, expected dtype, shape and "
            f"data_offsets; {DOWNLOAD_AGAIN}"
        )
    dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    wanted = math.prod(shape) * ITEM_BYTES.get(dtype, 0)
    if dtype in ITEM_BYTES and end - begin != wanted:
        raise SourceError(
            f"{path} is damaged: {named(name)} has {end - begin} bytes, expected {wanted} for {dtype} {shape}; "
            f"{DOWNLOAD_AGAIN}"
        )
    return RawTensor(name, path, stamp, dtype, tuple(shape), data + begin, end - begin)


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or not isinstance(shape, list) or not isinstance(offsets, list):
        return False
    if len(shape) > MAX_AXES or len(offsets) != 2:
        return False
    if any(type(number) is not int or not 0 <= number <= MAX_NUMBER for number in [*shape, *offsets]):
        return False
    return bool(offsets[0] <= offsets[1])


def _check_layout(path: Path, tensors: Mapping[str, RawTensor], data: int, size: int) -> None:
    """Tensors in the order of their offsets must follow each other without a gap, to the file's last byte."""
    at, before = data, "the header"
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset != at:
            what = "overlaps" if tensor.offset < at else "leaves a gap after"
            raise SourceError(
                f"{path} is damaged: {named(tensor.name)} {what} {before} (starts at {tensor.offset - data}, expected "
                f"{at - data}); {DOWNLOAD_AGAIN}"
            )
        at, before = at + tensor.nbytes, named(tensor.name)
    if at > size:
        raise SourceError(f"{path} is truncated: {size} bytes, expected {at}; {DOWNLOAD_AGAIN}")
    if at < size:
        raise SourceError(f"{path} has {size - at} bytes after its last tensor, expected none; {DOWNLOAD_AGAIN}")
