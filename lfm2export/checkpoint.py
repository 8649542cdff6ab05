"""A checkpoint folder, checked whole when it is opened, and its weights, read a range at a time.

Only headers are read at first. Weights come through plain reads into the caller's array, a mebibyte at a time, never
through a memory map: mapped pages count as resident, and a 2.6B checkpoint would look like 5 GB of memory. Every read
opens the file anew, so any number of threads may read at once and nothing has to be closed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

import numpy as np
from numpy.typing import NDArray

from lfm2export.errors import ConfigError, SourceError, TensorError, TokenizerError
from lfm2export.progress import Progress, silent
from lfm2export.spec import ModelSpec, parse_spec, read_config

if TYPE_CHECKING:
    from lfm2export.weights import BlockFormat, QuantizedBlocks

StoredDtype = Literal["F32", "F16", "BF16"]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

ITEM_BYTES: dict[str, int] = {"F32": 4, "F16": 2, "BF16": 2}
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")

#: The library that defines the format refuses longer headers too.
MAX_HEADER_BYTES = 100_000_000
#: Values converted at a time: input and output of one conversion stay in the cache of a core.
CHUNK_VALUES = 1 << 18
#: What one more read call costs, as the bytes that could have been read instead.
CALL_BYTES = 16 << 10
HASH_BYTES = 4 << 20

DOWNLOAD_AGAIN = "copy or download it again"


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: `nbytes` bytes at `offset` of `file`, row-major, little-endian."""

    name: str
    file: Path
    dtype: StoredDtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Checkpoint:
    """An LFM2 checkpoint whose config and tensors agree; made by :func:`open_checkpoint`.

    `tensors` are exactly those of `spec.source_tensors()`; `files` the safetensors files they lie in, in order.
    """

    folder: Path
    config: dict[str, Any]
    spec: ModelSpec
    tensors: dict[str, StoredTensor]
    files: tuple[Path, ...]

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) of axis 0: float32 [stop - start, ...]. Reads no other row.

        Raises:
            TensorError: the range holds NaN or Inf; the message counts those of the whole tensor.
            SourceError: the file cannot be read any more.
        """
        tensor = self.tensors[name]
        _check_range(tensor, start, stop, axis=0)
        out = np.empty((stop - start, *tensor.shape[1:]), np.float32)
        with _open(tensor.file) as file:
            finite = _fill(file, tensor, start * math.prod(tensor.shape[1:]), out.reshape(-1))
        if not finite:
            self._refuse_not_finite(tensor)
        return out

    def prepared(self, name: str, start: int, stop: int, format: BlockFormat) -> QuantizedBlocks | None:
        """None: a checkpoint holds no blocks."""
        return None

    def columns(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Columns [start, stop) of a matrix [R, C]: float32 [R, stop - start]; memory bounded by the result.

        Raises:
            TensorError, SourceError: as for :meth:`rows`.
        """
        tensor = self.tensors[name]
        _check_range(tensor, start, stop, axis=1)
        rows, columns = tensor.shape
        width = stop - start
        out = np.empty((rows, width), np.float32)
        finite = True
        with _open(tensor.file) as file:
            if (columns - width) * ITEM_BYTES[tensor.dtype] > CALL_BYTES:
                for row in range(rows):
                    finite &= _fill(file, tensor, row * columns + start, out[row])
            else:
                step = max(1, CHUNK_VALUES // columns)
                whole = np.empty((min(step, rows), columns), np.float32)
                for first in range(0, rows, step):
                    piece = whole[: min(step, rows - first)]
                    _fill(file, tensor, first * columns, piece.reshape(-1))
                    out[first : first + step] = piece[:, start:stop]
                    finite &= _all_finite(piece[:, start:stop])
        if not finite:
            self._refuse_not_finite(tensor)
        return out

    def hash_files(self, progress: Progress = silent) -> dict[str, str]:
        """sha256 of every safetensors file, by its path relative to the folder.

        Raises:
            SourceError: a file cannot be read any more.
        """
        total = sum(path.stat().st_size for path in self.files)
        done = 0

        def digest(path: Path) -> str:
            nonlocal done
            state = hashlib.sha256()
            buffer = memoryview(bytearray(HASH_BYTES))
            with _open(path) as file:
                while count := file.readinto(buffer):  # type: ignore[attr-defined]
                    state.update(buffer[:count])
                    done += count  # a lost update would only make the bar lag
                    progress("hash", done, total, "B")
            return state.hexdigest()

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            hashes = list(pool.map(digest, self.files))
        return {path.relative_to(self.folder).as_posix(): value for path, value in zip(self.files, hashes, strict=True)}

    def _refuse_not_finite(self, tensor: StoredTensor) -> None:
        """Scan the whole tensor, so that the message does not depend on which range was read first."""
        nans, infinities, first = 0, 0, -1
        count = math.prod(tensor.shape)
        with _open(tensor.file) as file:
            for position in range(0, count, CHUNK_VALUES):
                values = np.empty(min(CHUNK_VALUES, count - position), np.float32)
                if _fill(file, tensor, position, values):
                    continue
                nan, infinite = np.isnan(values), np.isinf(values)
                nans += int(nan.sum())
                infinities += int(infinite.sum())
                if first < 0 and (nan | infinite).any():
                    first = position + int(np.argmax(nan | infinite))
        if nans + infinities == 0:
            return  # finite values whose sum is not
        index = [int(i) for i in np.unravel_index(first, tensor.shape)]
        raise TensorError(
            f"{tensor.name} in {tensor.file.name} holds {nans} NaN and {infinities} Inf, the first at {index}; "
            "expected finite weights: the checkpoint is damaged or its training diverged, use an earlier one"
        )


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open and check a checkpoint folder: config, index, headers, names, shapes, dtypes. No weight is read, except
    those of an `lm_head.weight` that must repeat the tied table.

    Raises:
        SourceError: the folder, config.json or the weights are missing or damaged, or are not safetensors.
        ConfigError: config.json is no LFM2's, or contradicts itself or the tensors.
        TensorError: a tensor is missing, unexpected, misshaped or of an unsupported dtype.
    """
    folder = Path(folder)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise SourceError(
            f"{folder} holds an adapter (adapter_config.json), expected a whole model; merge it into its base "
            "(merge_and_unload) and save that with save_pretrained"
        )
    config = read_config(folder)
    spec = parse_spec(config)
    raw = _find_tensors(folder, spec)
    head = raw.pop(HEAD, None) if spec.tie_word_embeddings else None
    expected = spec.source_tensors()
    _check_names(raw, expected, spec)
    tensors = {name: _checked(raw[name], shape) for name, shape in expected.items()}
    checkpoint = Checkpoint(folder, config, spec, tensors, _files(tensors))
    if head is not None:
        _check_repeated_head(checkpoint, head)
    return checkpoint


def check_tokenizer(folder: Path, vocab_size: int) -> None:
    """Check that tokenizer.json is there and that no id of it lies outside the table of `vocab_size` rows.

    Raises:
        TokenizerError: it is missing, damaged, or larger than the vocabulary.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        others = [
            name for name in ("tokenizer.model", "vocab.json", "tokenizer_config.json") if (folder / name).exists()
        ]
        found = f" (only {', '.join(others)})" if others else ""
        raise TokenizerError(
            f"{folder} has no tokenizer.json{found}; save the tokenizer beside the weights with "
            "AutoTokenizer.from_pretrained(BASE_MODEL).save_pretrained(FOLDER)"
        )
    try:
        tokenizer = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not valid JSON ({error}); {DOWNLOAD_AGAIN}") from error
    ids = _token_ids(tokenizer)
    if not ids:
        raise TokenizerError(f"{path} has no model vocabulary (model.vocab); save it again with save_pretrained")
    largest = max(ids)
    if largest >= vocab_size:
        raise TokenizerError(
            f"{path} has the token {ids[largest]!r} with id {largest}, expected ids below vocab_size {vocab_size}; "
            "use the tokenizer that the model was trained with, or resize_token_embeddings and train on"
        )


def _token_ids(tokenizer: Any) -> dict[int, str]:
    """id -> token of the vocabulary and the added tokens; empty when there is no vocabulary."""
    model = tokenizer.get("model") if isinstance(tokenizer, dict) else None
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids: dict[int, str] = {}
    if isinstance(vocabulary, dict):
        ids = {index: token for token, index in vocabulary.items() if isinstance(index, int)}
    elif isinstance(vocabulary, list):  # Unigram: [token, score] in the order of ids
        ids = {index: str(entry[0]) for index, entry in enumerate(vocabulary) if isinstance(entry, list) and entry}
    if not ids:
        return {}
    added = tokenizer.get("added_tokens")
    for entry in added if isinstance(added, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("id"), int):
            ids[entry["id"]] = str(entry.get("content"))
    return ids


@dataclass(frozen=True)
class _RawTensor:
    """A header's entry, before its dtype and shape are known to be the expected ones."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def _find_tensors(folder: Path, spec: ModelSpec) -> dict[str, _RawTensor]:
    """Every tensor of the folder's weights; `model.safetensors` goes before an index as in transformers, unless it
    lacks tensors (one left over from another save)."""
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file():
        tensors = _read_header(single)
        if not index.is_file() or tensors.keys() >= spec.source_tensors().keys():
            return tensors
    if index.is_file():
        return _read_index(folder, index)
    raise SourceError(_no_weights(folder))


def _no_weights(folder: Path) -> str:
    wanted = f"expected {SINGLE} or {INDEX}"
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        return f"{folder} has {others[0]} but no index for it, {wanted}; {DOWNLOAD_AGAIN} with its index, or rename it"
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        return (
            f"{folder} has its weights as pickle only ({pickles[0]}), {wanted}; pickles can run code and are never "
            "opened: load the model with transformers and save_pretrained(FOLDER), which writes safetensors"
        )
    return f"{folder} has no weights, {wanted}; {DOWNLOAD_AGAIN} whole"


def _read_index(folder: Path, path: Path) -> dict[str, _RawTensor]:
    """The tensors of a sharded checkpoint, each from the shard that the index says."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path} is not valid JSON ({error}); {DOWNLOAD_AGAIN}") from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError(
            f"{path} has no weight_map, expected tensor names and the files they are in; {DOWNLOAD_AGAIN}"
        )
    shards: dict[str, dict[str, _RawTensor]] = {}
    tensors: dict[str, _RawTensor] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file or "\0" in file:
            raise SourceError(f"{path} names the file {file!r} for {name}, expected a file name; {DOWNLOAD_AGAIN}")
        if file not in shards:
            shards[file] = _read_header(_shard(folder, path, file))
        if name not in shards[file]:
            raise SourceError(
                f"{path} says that {name} is in {file}, but that file has no such tensor; {DOWNLOAD_AGAIN}"
            )
        tensors[name] = shards[file][name]
    for file, shard in shards.items():
        for name in shard:
            if name not in weight_map:
                raise SourceError(
                    f"{file} holds {name}, but {path} does not list it; {DOWNLOAD_AGAIN}, index and shards"
                )
    return tensors


def _shard(folder: Path, index: Path, file: str) -> Path:
    """The path of a shard; inside the folder as named, though it may be a link out (as in the hub's cache)."""
    for kind in (PurePosixPath(file), PureWindowsPath(file)):
        if kind.is_absolute() or kind.drive or ".." in kind.parts:
            raise SourceError(f"{index} names {file!r}, a path outside the folder; do not trust it: {DOWNLOAD_AGAIN}")
    path = folder / file
    if not path.is_file():
        raise SourceError(f"{index} names {file}, but there is no such file in {folder}; {DOWNLOAD_AGAIN}")
    return path


def _read_header(path: Path) -> dict[str, _RawTensor]:
    """The entries of one safetensors file. Offsets must cover the data exactly, as the format says."""
    with _open(path) as file:
        size = path.stat().st_size
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
    try:
        header = json.loads(text.decode("utf-8"))
        if not isinstance(header, dict):
            raise ValueError("not an object")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("__metadata__ holds more than strings")
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} is damaged: its header is not valid JSON ({error}); {DOWNLOAD_AGAIN}") from error
    tensors = {name: _entry(path, name, entry, 8 + length) for name, entry in header.items()}
    _check_layout(path, tensors, 8 + length, size)
    return tensors


def _entry(path: Path, name: str, entry: Any, data: int) -> _RawTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, begin, end]
        if not isinstance(dtype, str) or any(type(n) is not int or n < 0 for n in numbers) or end < begin:
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(
            f"{path} is damaged: the header's entry of {name} is {_short(entry)}, expected dtype, shape and "
            f"data_offsets; {DOWNLOAD_AGAIN}"
        ) from error
    wanted = math.prod(shape) * ITEM_BYTES.get(dtype, 0)
    if dtype in ITEM_BYTES and end - begin != wanted:
        raise SourceError(
            f"{path} is damaged: {name} has {end - begin} bytes, expected {wanted} for {dtype} {list(shape)}; "
            f"{DOWNLOAD_AGAIN}"
        )
    return _RawTensor(name, path, dtype, tuple(shape), data + begin, end - begin)


def _check_layout(path: Path, tensors: Mapping[str, _RawTensor], data: int, size: int) -> None:
    """Tensors in the order of their offsets must follow each other without a gap, to the file's last byte."""
    at, before = data, "the header"
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset != at:
            what = "overlaps" if tensor.offset < at else "leaves a gap after"
            raise SourceError(
                f"{path} is damaged: {tensor.name} {what} {before} (starts at {tensor.offset - data}, expected "
                f"{at - data}); {DOWNLOAD_AGAIN}"
            )
        at, before = at + tensor.nbytes, tensor.name
    if at > size:
        raise SourceError(f"{path} is truncated: {size} bytes, expected {at}; {DOWNLOAD_AGAIN}")
    if at < size:
        raise SourceError(f"{path} has {size - at} bytes after its last tensor, expected none; {DOWNLOAD_AGAIN}")


def _check_names(found: Mapping[str, _RawTensor], expected: Mapping[str, tuple[int, ...]], spec: ModelSpec) -> None:
    missing = [name for name in expected if name not in found]
    if missing:
        hint = "use the whole checkpoint, saved with save_pretrained from Lfm2ForCausalLM"
        if missing == [HEAD]:
            hint = "if the head is the embedding table, set tie_word_embeddings to true in config.json"
        raise TensorError(f"the checkpoint has no tensor {missing[0]}{_more(missing)}; {hint}")
    extra = [name for name in found if name not in expected]
    if extra:
        raise TensorError(
            f"the checkpoint has a tensor {extra[0]}{_more(extra)} in {found[extra[0]].file.name}, expected none but "
            f"the {len(expected)} of an LFM2 of {spec.num_hidden_layers} layers; remove it, or correct config.json"
        )


def _checked(raw: _RawTensor, shape: tuple[int, ...]) -> StoredTensor:
    if raw.dtype not in ITEM_BYTES:
        raise TensorError(
            f"{raw.name} in {raw.file.name} is {raw.dtype}, expected F32, F16 or BF16; use the checkpoint before it "
            "was quantized or converted"
        )
    if raw.shape != shape:
        if raw.name == EMBEDDING and raw.shape[1:] == shape[1:]:
            raise ConfigError(
                f"config.json says vocab_size {shape[0]} but {raw.name} has {raw.shape[0]} rows; if the vocabulary was "
                f"resized, set vocab_size to {raw.shape[0]}"
            )
        raise TensorError(
            f"{raw.name} in {raw.file.name} has the shape {list(raw.shape)}, expected {list(shape)} by config.json; "
            "use the config.json that was saved with these weights"
        )
    return StoredTensor(raw.name, raw.file, cast("StoredDtype", raw.dtype), raw.shape, raw.offset, raw.nbytes)


def _check_repeated_head(checkpoint: Checkpoint, raw: _RawTensor) -> None:
    """A tied checkpoint may store `lm_head.weight` if it repeats the table, value by value."""
    table = checkpoint.tensors[EMBEDDING]
    contradiction = "set tie_word_embeddings to false in config.json to export the head as its own, or remove it"
    if raw.shape != table.shape:
        raise ConfigError(
            f"config.json ties the head to the table, but {HEAD} has the shape {list(raw.shape)} and {EMBEDDING} "
            f"{list(table.shape)}; {contradiction}"
        )
    head = _checked(raw, table.shape)
    both = Checkpoint(checkpoint.folder, checkpoint.config, checkpoint.spec, {EMBEDDING: table, HEAD: head}, ())
    rows, columns = table.shape
    step = max(1, CHUNK_VALUES // columns)
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        differs = both.rows(EMBEDDING, start, stop) != both.rows(HEAD, start, stop)
        if differs.any():
            row, column = (int(i) for i in np.unravel_index(int(np.argmax(differs)), differs.shape))
            raise ConfigError(
                f"config.json ties the head to the table, but {HEAD} differs from {EMBEDDING}, first at "
                f"[{start + row}, {column}]; {contradiction}"
            )


def _files(tensors: Mapping[str, StoredTensor]) -> tuple[Path, ...]:
    return tuple(sorted({tensor.file for tensor in tensors.values()}))


def _check_range(tensor: StoredTensor, start: int, stop: int, axis: int) -> None:
    if axis == 1 and len(tensor.shape) != 2:
        raise ValueError(f"{tensor.name} is no matrix: {tensor.shape}")
    if not 0 <= start <= stop <= tensor.shape[axis]:
        raise ValueError(f"[{start}, {stop}) is no range of axis {axis} of {tensor.name} {tensor.shape}")


def _open(path: Path) -> BinaryIO:
    try:
        return cast(BinaryIO, path.open("rb", buffering=0))
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}; check that it exists and may be read") from error


def _fill(file: BinaryIO, tensor: StoredTensor, first: int, out: NDArray[np.float32]) -> bool:
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
        finite &= _all_finite(part)
    return finite


def _parts(values: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(values), CHUNK_VALUES):
        yield values[start : start + CHUNK_VALUES]


def _all_finite(values: NDArray[np.float32]) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(values.sum()))


def _read(file: BinaryIO, tensor: StoredTensor, out: NDArray[np.uint8]) -> None:
    view = out.data
    while view:
        count = file.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise SourceError(f"{tensor.file} became shorter while it was read; do not change it during a build")
        view = view[count:]


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
