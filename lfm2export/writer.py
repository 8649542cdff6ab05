"""A model whose weights are recipes becomes files: NAME.onnx, NAME.onnx_data, NAME.onnx_data_1, ...

    layout -> preallocate -> read | compute | write, piece by piece, on every core -> hash behind the writers -> proto

Files are laid out before any weight is read, so that a full disk is known at once, pieces can be written in any
order, and the bytes are the same whatever the number of threads. Large models are evaluated in processes, see `pool`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from lfm2export.contract import MAX_CHUNK_BYTES
from lfm2export.errors import GraphError, OutputError
from lfm2export.pieces import Overflow, Piece, Slot, cut, evaluate, stored_bytes
from lfm2export.pool import Pool
from lfm2export.progress import Progress, silent
from lfm2export.weights import RECIPE, Recipe, WeightSource

STAGE = "write"

#: Tensors of at least LARGE bytes start on a page, so that a reader can map them; others on a cache line.
LARGE, PAGE, CACHE_LINE = 1 << 16, 4096, 64

HASH_BYTES = 1 << 20

#: Fewer weights than this are done by threads before processes have started, which takes 0.3 s.
FEW = 64_000_000


@dataclass(frozen=True)
class WrittenFile:
    """One file beside the model, by its bare name; sha256 in hexadecimal."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class WrittenInitializer:
    """One initializer of the graph; recipe None: a small constant, stored inside the model file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    recipe: Recipe | None


@dataclass(frozen=True)
class WrittenModel:
    """files: the model file, then its data files in order. overflows: weights that float16 could not hold."""

    files: tuple[WrittenFile, ...]
    initializers: tuple[WrittenInitializer, ...]
    overflows: tuple[Overflow, ...]


def write_model(
    model: ir.Model,
    source: WeightSource,
    path: Path,
    *,
    threads: int,
    progress: Progress = silent,
    max_chunk_bytes: int = MAX_CHUNK_BYTES,
) -> WrittenModel:
    """Write `model` to `path` and its weights beside it; every initializer with a recipe becomes external data.

    The model's initializers point to the files afterwards. Progress counts bytes of weights written. When this raises,
    files are left half written: the caller removes the folder.

    Raises:
        GraphError: an initializer has neither value nor recipe, or its recipe does not fit the source.
        OutputError: no space, a folder that cannot be written, or a tensor larger than `max_chunk_bytes`.
        SourceError, TensorError: the source cannot be read, or holds NaN or Inf.
    """
    slots, sizes = lay_out(_recipes(model), max_chunk_bytes)
    pieces = list(cut(slots, source))
    paths = [path.with_name(data_name(path.name, number)) for number in range(len(sizes))]
    with _output_errors(path, sum(sizes)), contextlib.ExitStack() as stack:
        files = [stack.enter_context(_preallocated(data, size)) for data, size in zip(paths, sizes, strict=True)]
        job = _Job(slots, pieces, files, progress)
        evaluate = WritePieces(source, pieces, paths)
        if threads < 2 or sum(piece.weights(source) for piece in pieces) < FEW:
            overflows = job.run(evaluate, threads)
        else:
            with Pool(threads, evaluate) as pool:
                overflows = job.run(pool.run, threads)
        written = [
            WrittenFile(data.name, size, digest) for data, size, digest in zip(paths, sizes, job.digests, strict=True)
        ]
    for slot in slots:
        _attach(model.graph.initializers[slot.name], slot, paths[slot.file])
    content = ir.to_proto(model).SerializeToString(deterministic=True)
    with _output_errors(path, len(content)):
        path.write_bytes(content)
    graph = WrittenFile(path.name, len(content), hashlib.sha256(content).hexdigest())
    return WrittenModel((graph, *written), _listing(model), tuple(overflows))


def file_bytes(model: ir.Model, name: str, max_chunk_bytes: int = MAX_CHUNK_BYTES) -> int:
    """Bytes of the file `name` that :func:`write_model` would make of `model`, its data files included; none is made.

    The model's initializers point to those files afterwards.
    """
    slots, sizes = lay_out(_recipes(model), max_chunk_bytes)
    for slot in slots:
        _attach(model.graph.initializers[slot.name], slot, Path(data_name(name, slot.file)))
    return sum(sizes) + len(ir.to_proto(model).SerializeToString(deterministic=True))


def data_name(model_name: str, number: int) -> str:
    """Bare name of data file `number` of the model file `model_name`: _data, _data_1, _data_2, ..."""
    return f"{model_name}_data" + (f"_{number}" if number else "")


def lay_out(recipes: dict[str, Recipe], max_chunk_bytes: int) -> tuple[list[Slot], list[int]]:
    """Places of all initializers, in the order given, whole tensors per file; and the size of each file.

    Raises:
        OutputError: one tensor alone is larger than `max_chunk_bytes`.
    """
    slots: list[Slot] = []
    sizes: list[int] = []
    for name, recipe in recipes.items():
        nbytes = stored_bytes(recipe)
        if nbytes > max_chunk_bytes:
            raise OutputError(
                f"{name} takes {nbytes} bytes as {recipe.dtype} {list(recipe.shape)}, more than the {max_chunk_bytes} "
                "of one data file; choose a smaller dtype"
            )
        alignment = PAGE if nbytes >= LARGE else CACHE_LINE
        start = -(-sizes[-1] // alignment) * alignment if sizes else 0
        if not sizes or start + nbytes > max_chunk_bytes:
            sizes.append(0)
            start = 0
        slots.append(Slot(name, recipe, len(sizes) - 1, start))
        sizes[-1] = start + nbytes
    return slots, sizes


@dataclass(frozen=True)
class WritePieces:
    """The job of one piece, by its number: read, computed, written to its places in the files `paths`."""

    source: WeightSource
    pieces: list[Piece]
    paths: list[Path]

    def __call__(self, number: int) -> list[Overflow]:
        piece = self.pieces[number]
        with contextlib.ExitStack() as stack:
            numbers = {slot.file for slot in piece.slots}
            files = {file: stack.enter_context(self.paths[file].open("r+b", buffering=0)) for file in numbers}

            def write(slot: Slot, offset: int, values: NDArray[Any]) -> None:
                data = values.data.cast("B")
                position = slot.offset + offset
                while data:
                    count = os.pwrite(files[slot.file].fileno(), data, position)
                    data, position = data[count:], position + count

            return evaluate(piece, self.source, write)


class _Job:
    """Pieces in flight, and what is known about the files so far. `lock` guards everything that changes."""

    def __init__(self, slots: list[Slot], pieces: list[Piece], files: list[int], progress: Progress) -> None:
        self.slots, self.pieces, self.files, self.progress = slots, pieces, files, progress
        self.total = sum(slot.nbytes for slot in slots)
        self.done = 0
        self.lock = threading.Condition()
        self.missing = Counter(slot.name for piece in pieces for slot in piece.slots)
        self.stopped = False
        self.overflows: dict[str, Overflow] = {}
        self.digests: list[str] = []

    def run(self, evaluate: Callable[[int], list[Overflow]], threads: int) -> list[Overflow]:
        """Evaluate every piece, `threads` at a time, while one more thread hashes finished tensors."""
        workers = ThreadPoolExecutor(max(1, threads), thread_name_prefix="lfm2export-weights")
        hasher = ThreadPoolExecutor(1, thread_name_prefix="lfm2export-hash")
        try:
            futures = [workers.submit(self._evaluate, number, evaluate) for number in range(len(self.pieces))]
            futures.append(hasher.submit(self._hash))
            finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in futures:  # of several errors, the one that comes first in the file
                if future in finished:
                    future.result()
        finally:
            with self.lock:
                self.stopped = True
                self.lock.notify_all()
            for pool in (workers, hasher):
                pool.shutdown(wait=True, cancel_futures=True)
        return [self.overflows[slot.name] for slot in self.slots if slot.name in self.overflows]

    def _evaluate(self, number: int, evaluate: Callable[[int], list[Overflow]]) -> None:
        if self.stopped:
            return
        piece = self.pieces[number]
        for overflow in evaluate(number):
            self._count(overflow)
        with self.lock:
            for slot in piece.slots:
                self.missing[slot.name] -= 1
            self.done += piece.nbytes
            done = self.done
            self.lock.notify_all()
        self.progress(STAGE, done, self.total, "B")

    def _count(self, overflow: Overflow) -> None:
        with self.lock:
            before = self.overflows.get(overflow.tensor, Overflow(overflow.tensor, 0, 0.0))
            self.overflows[overflow.tensor] = Overflow(
                overflow.tensor, before.count + overflow.count, max(before.largest, overflow.largest)
            )

    def _hash(self) -> None:
        """sha256 of each file, a tensor at a time as soon as it is complete, read back from the page cache."""
        states = [hashlib.sha256() for _ in self.files]
        hashed = [0] * len(self.files)
        buffer = memoryview(bytearray(HASH_BYTES))
        for slot in self.slots:
            with self.lock:
                self.lock.wait_for(lambda name=slot.name: self.stopped or not self.missing[name])  # type: ignore[misc]
                if self.stopped:
                    return
            end = slot.offset + slot.nbytes
            while hashed[slot.file] < end:
                size = min(HASH_BYTES, end - hashed[slot.file])
                count = os.preadv(self.files[slot.file], [buffer[:size]], hashed[slot.file])
                if not count:
                    raise OSError(f"data file {slot.file} ends at {hashed[slot.file]}, expected {end} bytes")
                states[slot.file].update(buffer[:count])
                hashed[slot.file] += count
        self.digests = [state.hexdigest() for state in states]


def _recipes(model: ir.Model) -> dict[str, Recipe]:
    recipes: dict[str, Recipe] = {}
    for name, value in model.graph.initializers.items():
        if RECIPE in value.meta:
            recipes[name] = value.meta[RECIPE]
        elif value.const_value is None:
            raise GraphError(f"initializer {name} has neither a value nor a recipe")
    return recipes


def _attach(value: ir.Value, slot: Slot, data: Path) -> None:
    """Make the initializer's value the bytes of its slot."""
    shape, dtype = ir.Shape(slot.recipe.shape), ir.DataType[slot.recipe.dtype]
    value.dtype, value.shape = dtype, shape
    value.const_value = ir.ExternalTensor(
        data.name,
        slot.offset,
        slot.nbytes,
        dtype,
        shape=ir.Shape(slot.recipe.shape),
        name=slot.name,
        base_dir=data.parent,
    )


def _listing(model: ir.Model) -> tuple[WrittenInitializer, ...]:
    listing = []
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None
        shape = tuple(int(size) for size in tensor.shape)  # type: ignore[arg-type]
        listing.append(WrittenInitializer(name, tensor.dtype.name, shape, tensor.nbytes, value.meta.get(RECIPE)))
    return tuple(listing)


@contextlib.contextmanager
def _preallocated(path: Path, size: int) -> Iterator[int]:
    """A new file of `size` bytes whose space is reserved, as a file descriptor."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(descriptor, 0, size)
        else:
            os.ftruncate(descriptor, size)
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _output_errors(path: Path, needed: int) -> Iterator[None]:
    """Turn what the system says about the files beside `path`, `needed` bytes in all, into one line."""
    free: int | None = None
    try:
        free = shutil.disk_usage(path.parent).free
        if needed > free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(
                f"no space left in {path.parent}: {path.name} needs {needed} bytes, has {free}; free some, or choose "
                "another output folder"
            ) from error
        raise OutputError(
            f"{path} cannot be written ({error.strerror or error}); check its folder, or choose another"
        ) from error
