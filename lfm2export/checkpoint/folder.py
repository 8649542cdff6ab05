"""Which files a checkpoint folder has, and that its tensors and config.json agree. Only headers are read at first."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from lfm2export.checkpoint import values
from lfm2export.checkpoint.foreign import check_adapter, check_names
from lfm2export.checkpoint.header import DOWNLOAD_AGAIN, RawTensor, read_header
from lfm2export.checkpoint.values import ITEM_BYTES, StoredDtype, StoredTensor, all_finite, fill, opened
from lfm2export.errors import ConfigError, SourceError, TensorError
from lfm2export.progress import Progress, silent
from lfm2export.spec import ModelSpec, parse_spec, read_config
from lfm2export.untrusted.json_reader import read_object
from lfm2export.untrusted.paths import find_file, is_utf8, named, path_inside

if TYPE_CHECKING:
    from lfm2export.weights import BlockFormat, QuantizedBlocks

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")

#: What one more read call costs, as the bytes that could have been read instead.
CALL_BYTES = 16 << 10
HASH_BYTES = 4 << 20


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
            SourceError: the file cannot be read any more, or was changed.
        """
        tensor = self.tensors[name]
        _check_range(tensor, start, stop, axis=0)
        out = np.empty((stop - start, *tensor.shape[1:]), np.float32)
        with opened(tensor.file, tensor.stamp) as file:
            finite = fill(file, tensor, start * math.prod(tensor.shape[1:]), out.reshape(-1))
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
        with opened(tensor.file, tensor.stamp) as file:
            if (columns - width) * ITEM_BYTES[tensor.dtype] > CALL_BYTES:
                for row in range(rows):
                    finite &= fill(file, tensor, row * columns + start, out[row])
            else:
                step = max(1, values.CHUNK_VALUES // columns)
                whole = np.empty((min(step, rows), columns), np.float32)
                for first in range(0, rows, step):
                    piece = whole[: min(step, rows - first)]
                    fill(file, tensor, first * columns, piece.reshape(-1))
                    out[first : first + step] = piece[:, start:stop]
                    finite &= all_finite(piece[:, start:stop])
        if not finite:
            self._refuse_not_finite(tensor)
        return out

    def hash_files(self, progress: Progress = silent) -> dict[str, str]:
        """sha256 of every safetensors file, by its path relative to the folder.

        Raises:
            SourceError: a file cannot be read any more, or is not the one whose header was read.
        """
        stamps = {tensor.file: tensor.stamp for tensor in self.tensors.values()}
        total = sum(stamp.size for stamp in stamps.values())
        done = 0

        def digest(path: Path) -> str:
            nonlocal done
            state = hashlib.sha256()
            buffer = memoryview(bytearray(HASH_BYTES))
            with opened(path, stamps[path]) as file:
                while count := file.readinto(buffer):  # type: ignore[attr-defined]
                    state.update(buffer[:count])
                    done += count  # a lost update would only make the bar lag
                    progress("hash", done, total, "B")
            return state.hexdigest()

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            hashes = list(pool.map(digest, self.files))
        return {path.relative_to(self.folder).as_posix(): value for path, value in zip(self.files, hashes, strict=True)}

    def check_unchanged(self) -> None:
        """That the files are those whose headers were read.

        Raises:
            SourceError: one is not, or cannot be read any more.
        """
        for path, stamp in {tensor.file: tensor.stamp for tensor in self.tensors.values()}.items():
            with opened(path, stamp):
                pass

    def _refuse_not_finite(self, tensor: StoredTensor) -> None:
        """Scan the whole tensor, so that the message does not depend on which range was read first."""
        nans, infinities, first = 0, 0, -1
        count = math.prod(tensor.shape)
        with opened(tensor.file, tensor.stamp) as file:
            for position in range(0, count, values.CHUNK_VALUES):
                part = np.empty(min(values.CHUNK_VALUES, count - position), np.float32)
                if fill(file, tensor, position, part):
                    continue
                nan, infinite = np.isnan(part), np.isinf(part)
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
        SourceError: the folder, config.json or the weights are missing or damaged, or are not safetensors; or the
            folder's path is not UTF-8, which libraries in C++ do not take.
        ConfigError: config.json is no LFM2's, or contradicts itself or the tensors.
        TensorError: a tensor is missing, unexpected, misshaped or of an unsupported dtype.
    """
    folder = Path(folder)
    if not is_utf8(folder):
        raise SourceError(f"the name of {folder.resolve()} is not UTF-8; rename that folder")
    single, index = (find_file(folder, name, SourceError) for name in (SINGLE, INDEX))
    check_adapter(folder, weights=single is not None or index is not None)
    config = read_config(folder)
    spec = parse_spec(config)
    raw = _find_tensors(folder, single, index, spec)
    head = raw.pop(HEAD, None) if spec.tie_word_embeddings else None
    expected = spec.source_tensors()
    _check_names(raw, expected, spec)
    tensors = {name: _checked(raw[name], shape) for name, shape in expected.items()}
    checkpoint = Checkpoint(folder, config, spec, tensors, _files(tensors))
    if head is not None:
        _check_repeated_head(checkpoint, head)
    return checkpoint


def _find_tensors(folder: Path, single: Path | None, index: Path | None, spec: ModelSpec) -> dict[str, RawTensor]:
    """Every tensor of the folder's weights; `model.safetensors` goes before an index as in transformers, unless it
    lacks tensors (one left over from another save)."""
    if single is not None:
        tensors = read_header(single)
        if index is None or tensors.keys() >= spec.source_tensors().keys():
            return tensors
    if index is not None:
        return _read_index(folder, index)
    raise SourceError(_no_weights(folder))


def _no_weights(folder: Path) -> str:
    wanted = f"expected {SINGLE} or {INDEX}"
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        found = f"{folder} has {named(others[0])} but no index for it"
        return f"{found}, {wanted}; {DOWNLOAD_AGAIN} with its index, or rename it"
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        return (
            f"{folder} has its weights as pickle only ({named(pickles[0])}), {wanted}; pickles can run code and are "
            "never opened: load the model with transformers and save_pretrained(FOLDER), which writes safetensors"
        )
    return f"{folder} has no weights, {wanted}; {DOWNLOAD_AGAIN} whole"


def _read_index(folder: Path, path: Path) -> dict[str, RawTensor]:
    """The tensors of a sharded checkpoint, each from the shard that the index says."""
    weight_map = read_object(path, SourceError, DOWNLOAD_AGAIN, folder=folder).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError(
            f"{path} has no weight_map, expected tensor names and the files they are in; {DOWNLOAD_AGAIN}"
        )
    shards: dict[str, dict[str, RawTensor]] = {}
    tensors: dict[str, RawTensor] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or file not in shards:
            shard = path_inside(folder, file, f"{path}, for {named(name)},", SourceError)
            if not shard.is_file():
                raise SourceError(f"{path} names {file}, but there is no such file in {folder}; {DOWNLOAD_AGAIN}")
            shards[file] = read_header(shard)
        if name not in shards[file]:
            raise SourceError(
                f"{path} says that {named(name)} is in {file}, but that file has no such tensor; {DOWNLOAD_AGAIN}"
            )
        tensors[name] = shards[file][name]
    for file, held in shards.items():
        for name in held:
            if name not in weight_map:
                raise SourceError(
                    f"{file} holds {named(name)}, but {path} does not list it; {DOWNLOAD_AGAIN}, index and shards"
                )
    return tensors


def _check_names(found: Mapping[str, RawTensor], expected: Mapping[str, tuple[int, ...]], spec: ModelSpec) -> None:
    check_names(found)
    missing = [name for name in expected if name not in found]
    if missing:
        hint = "use the whole checkpoint, saved with save_pretrained from Lfm2ForCausalLM"
        if missing == [HEAD]:
            hint = "if the head is the embedding table, set tie_word_embeddings to true in config.json"
        raise TensorError(f"the checkpoint has no tensor {missing[0]}{_more(missing)}; {hint}")
    extra = [name for name in found if name not in expected]
    if extra:
        raise TensorError(
            f"the checkpoint has a tensor {named(extra[0])}{_more(extra)} in {found[extra[0]].file.name}, expected "
            f"none but the {len(expected)} of an LFM2 of {spec.num_hidden_layers} layers; remove it, or correct "
            "config.json"
        )


def _checked(raw: RawTensor, shape: tuple[int, ...]) -> StoredTensor:
    if raw.dtype not in ITEM_BYTES:
        raise TensorError(
            f"{raw.name} in {raw.file.name} is {named(raw.dtype)}, expected F32, F16 or BF16; use the checkpoint "
            "before it was quantized or converted"
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
    return StoredTensor(
        raw.name, raw.file, raw.stamp, cast("StoredDtype", raw.dtype), raw.shape, raw.offset, raw.nbytes
    )


def _check_repeated_head(checkpoint: Checkpoint, raw: RawTensor) -> None:
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
    step = max(1, values.CHUNK_VALUES // columns)
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


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
