"""The values of a stored tensor, a range at a time, as float32.

They come through plain reads into the caller's array, a mebibyte at a time, never through a memory map: mapped pages
count as resident, and a 2.6B checkpoint would look like 5 GB of memory. Every read opens the file anew, so any number
of threads may read at once and nothing has to be closed; each checks that the file is the one whose header was read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

import numpy as np
from numpy.typing import NDArray

from lfm2export.errors import SourceError

StoredDtype = Literal["F32", "F16", "BF16"]

ITEM_BYTES: dict[str, int] = {"F32": 4, "F16": 2, "BF16": 2}

#: Values converted at a time: input and output of one conversion stay in the cache of a core.
CHUNK_VALUES = 1 << 18


@dataclass(frozen=True)
class Stamp:
    """What tells one content of a file from the next, as far as the file system does."""

    size: int
    modified: int
    place: tuple[int, int]

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        return cls(status.st_size, status.st_mtime_ns, (status.st_dev, status.st_ino))


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: `nbytes` bytes at `offset` of `file`, row-major, little-endian; `stamp` is the file's."""

    name: str
    file: Path
    stamp: Stamp
    dtype: StoredDtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@contextmanager
def opened(path: Path, stamp: Stamp | None = None) -> Iterator[BinaryIO]:
    """`path`, open for unbuffered reading.

    Raises:
        SourceError: it cannot be read, or is not of `stamp`, when it is opened or when the caller is done with it.
    """
    try:
        with path.open("rb", buffering=0) as file:
            if stamp is not None:
                _check(path, file, stamp)
            yield cast(BinaryIO, file)
            if stamp is not None:
                _check(path, file, stamp)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}; check that it exists and may be read") from error


def fill(file: BinaryIO, tensor: StoredTensor, first: int, out: NDArray[np.float32]) -> bool:
    """Values [first, first + len(out)) of the flattened tensor into `out`, as float32; True if the sum is finite.

    A NaN or Inf always makes the sum not finite; so do values that add up past float32, which the caller tells apart.
    """
    file.seek(tensor.offset + first * ITEM_BYTES[tensor.dtype])
    finite = True
    scratch = np.empty(0 if tensor.dtype == "F32" else min(CHUNK_VALUES, len(out)), np.uint16)
    for part in _parts(out):
        if tensor.dtype == "F32":
            _read(file, tensor, part.view(np.uint8))
        else:
            half = scratch[: len(part)]
            _read(file, tensor, half.view(np.uint8))
            if tensor.dtype == "BF16":  # bfloat16 is the upper half of float32
                np.left_shift(half, np.uint32(16), out=part.view(np.uint32), dtype=np.uint32)
            else:
                part[:] = half.view(np.float16)
        finite &= all_finite(part)
    return finite


def all_finite(values: NDArray[np.float32]) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(values.sum()))


def _check(path: Path, file: BinaryIO | object, stamp: Stamp) -> None:
    now = Stamp.of(os.fstat(cast(BinaryIO, file).fileno()))
    if now == stamp:
        return
    if now.size != stamp.size:
        what = f"has {now.size} bytes, expected the {stamp.size} that it had when it was opened"
    elif now.place != stamp.place:
        what = "is another file than was opened"
    else:
        what = "was written to after it was opened"
    raise SourceError(f"{path} changed while it was read: it {what}; do not change it during a build, and start again")


def _parts(values: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(values), CHUNK_VALUES):
        yield values[start : start + CHUNK_VALUES]


def _read(file: BinaryIO, tensor: StoredTensor, out: NDArray[np.uint8]) -> None:
    view = out.data
    while view:
        count = file.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise SourceError(f"{tensor.file} became shorter while it was read; do not change it during a build")
        view = view[count:]
