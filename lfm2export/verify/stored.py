"""The weights that a file holds, under the names of the checkpoint's tensors: read in rows, dequantized, as float32.

An initializer's name says what it is made of, as this package writes it (`passes`, `weights.Recipe`):

    model.layers.0.conv.out_proj.weight                         the tensor itself
    NAME.transposed                                             its axes reversed: [in, out]; a kernel as [L, 1, H]
    ...w1.weight+w3.transposed                                  several tensors of one layer, stacked
    ...q_layernorm.weight+k_layernorm.heads                     each once for every head that it is the norm of
    NAME.codes  NAME.scales  NAME.zero_points                   blocks of 4 or 8 bits, perhaps stacked
    NAME.int8 [in, out]  NAME.int8_rows  NAME.channel_scales    a block of 8 bits for each row, perhaps stacked; what
                                                                pads it (`weights.ChannelFormat`) is no row

A file of other names has no such weights, and what depends on them is not measured.
Letters: N rows (output features), K columns (input features), S block_size, G blocks per row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from lfm2export.errors import ArtifactError
from lfm2export.quant.blocks import dequantize, unsigned
from lfm2export.recipes import BLOCK_SIZES
from lfm2export.spec import ModelSpec
from lfm2export.untrusted.paths import shown
from lfm2export.weights import BlockFormat, ChannelFormat, QuantizedBlocks

Kind = Literal["plain", "transposed", "heads", "blocks"]

_BITS: tuple[Literal[4, 8], ...] = (4, 8)

_TYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.UINT8: "uint8",
    TensorProto.INT8: "int8",
}

#: What an exact copy adds to the name of a weight that it casts to float32.
CAST = "/float32"

#: What the suffix of an initializer's name says of it.
_KINDS: dict[str, Kind] = {
    "transposed": "transposed",
    "heads": "heads",
    "codes": "blocks",
    "int8": "blocks",
    "int8_rows": "blocks",
}


@dataclass(frozen=True)
class Raw:
    """Bytes of one initializer: in a data file from `offset` on, or at hand in `inline`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path | None
    offset: int
    inline: NDArray[Any] | None

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop) of axis 0, as stored.

        Raises:
            ArtifactError: the data file is missing or too short.
        """
        if self.inline is not None:
            return self.inline[start:stop]
        return self._read(start * math.prod(self.shape[1:]), (stop - start, *self.shape[1:]))

    def columns(self, start: int, stop: int) -> NDArray[Any]:
        """Of a tensor stored with its axes reversed, [..., rows], rows [start, stop) as [stop - start, ...]."""
        if self.inline is not None:
            return self.inline[..., start:stop].T
        width = self.shape[-1]
        if stop - start == width:
            return self.rows(0, self.shape[0]).T
        parts = [self._read(row * width + start, (stop - start,)) for row in range(math.prod(self.shape[:-1]))]
        return np.stack(parts, axis=1).reshape(stop - start, *self.shape[-2::-1])

    def _read(self, first: int, shape: tuple[int, ...]) -> NDArray[Any]:
        assert self.path is not None
        dtype = np.dtype(self.dtype)
        count = math.prod(shape)
        try:
            found = np.fromfile(self.path, dtype, count, offset=self.offset + first * dtype.itemsize)
        except OSError as error:
            raise ArtifactError(f"{self.path} cannot be read ({error}); build it again") from error
        if found.size != count:
            raise ArtifactError(f"{self.path} ends within {self.name}; build it again, or fetch it anew")
        return found.reshape(shape)


@dataclass(frozen=True)
class Stored:
    """One weight: `parts` are source tensors stacked along their rows, each of `rows` rows; a tensor may come again."""

    name: str
    kind: Kind
    parts: tuple[str, ...]
    rows: tuple[int, ...]
    values: Raw
    scales: Raw | None = None
    zero_points: Raw | None = None
    format: BlockFormat | None = None
    columns: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The stacked shape of the source."""
        if self.kind == "blocks":
            return (sum(self.rows), self.columns)
        if self.kind == "heads":
            return (sum(self.rows),)
        return self.values.shape[::-1] if self.kind == "transposed" else self.values.shape

    @property
    def padding(self) -> int:
        """Rows of zeros after the stack."""
        if self.values.dtype != "int8":
            return 0
        return self.values.shape[1 if self.reversed else 0] - sum(self.rows)

    def first(self, part: str) -> int:
        """The first row of `part` in the stack."""
        return sum(self.rows[: self.parts.index(part)])

    @property
    def reversed(self) -> bool:
        """Whether its axes are stored in reverse: a row of the source is a column, read value by value."""
        return self.kind == "transposed" or (self.values.dtype == "int8" and self.name.endswith(".int8"))

    def blocks(self, start: int, stop: int) -> QuantizedBlocks:
        """Rows [start, stop) of the stack, quantized."""
        assert self.scales is not None
        if self.values.dtype == "int8":
            codes = self.values.columns(start, stop) if self.reversed else self.values.rows(start, stop)
            return QuantizedBlocks(unsigned(codes), self.scales.rows(start, stop)[:, None], None)
        zeros = self.zero_points.rows(start, stop) if self.zero_points is not None else None
        return QuantizedBlocks(self.values.rows(start, stop), self.scales.rows(start, stop), zeros)

    def floats(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) of the stack as the operator uses them, float32."""
        if self.kind == "blocks":
            assert self.format is not None
            return dequantize(self.blocks(start, stop), self.format, self.columns)
        if self.kind == "heads":
            found = self.values.rows(0, self.values.shape[0]).reshape(-1)[start:stop]
        elif self.kind == "transposed":
            found = self.values.columns(start, stop)
        else:
            found = self.values.rows(start, stop)
        return found.astype(np.float32)


@dataclass(frozen=True)
class StoredWeights:
    """All weights of a file that could be told, by initializer; `missing` are source tensors that none holds."""

    weights: Mapping[str, Stored]
    missing: tuple[str, ...]

    def override(self, name: str, start: int, stop: int) -> NDArray[np.float32] | None:
        """The file's own rows of source tensor `name`, for the reference; None where it has none of that name."""
        for stored in self.weights.values():
            if name in stored.parts:
                first = stored.first(name)
                return stored.floats(first + start, first + stop)
        return None


def read_stored(model: onnx.ModelProto, folder: Path, spec: ModelSpec) -> StoredWeights:
    """What the initializers of `model`, with data in `folder`, hold of a checkpoint of `spec`.

    An initializer whose name or shape does not fit is left out, and its tensors are then missing.
    """
    source = spec.source_tensors()
    raws = {t.name: raw_tensor(t, folder) for t in model.graph.initializer if t.data_type in _TYPES}
    stated = _stated(model)
    found: dict[str, Stored] = {}
    for name in raws:
        stored = _stored(name, raws, source, stated.get(name))
        if stored is not None:
            found[name] = stored
    held = {part for stored in found.values() for part in stored.parts}
    return StoredWeights(found, tuple(name for name in source if name not in held))


def _stated(model: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """Codes -> (bits, block size) that the operator which multiplies by them states."""
    found = {}
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            values = {attribute.name: attribute.i for attribute in node.attribute}
            found[node.input[1]] = (values.get("bits", 4), values.get("block_size", 0))
    return found


def _stored(
    name: str, raws: Mapping[str, Raw], source: Mapping[str, tuple[int, ...]], stated: tuple[int, int] | None
) -> Stored | None:
    raw = raws[name]
    base, _, suffix = name.rpartition(".")
    kind = _KINDS.get(suffix, "plain")
    parts = _parts(base if kind != "plain" else name)
    if any(part not in source for part in parts):
        return None
    if kind == "heads":
        parts = tuple(part for part in parts for _ in range(_heads(part, source)))
    shapes = [source[part] for part in parts]
    rows = tuple(shape[0] for shape in shapes)
    whole = (sum(rows), *shapes[0][1:])
    if raw.dtype == "int8":
        scales = raws.get(f"{base}.channel_scales")
        stacked = raw.shape[::-1] if suffix == "int8" else raw.shape
        padded = [(count, *whole[1:]) for count in (whole[0], whole[0] + ChannelFormat().padding(whole[0]))]
        fits = kind == "blocks" and stacked in padded and scales is not None and scales.shape == stacked[:1]
        row = ChannelFormat().block(whole[-1])
        return Stored(name, "blocks", parts, rows, raw, scales, None, row, whole[-1]) if fits else None
    if kind == "blocks":
        scales, zeros = raws.get(f"{base}.scales"), raws.get(f"{base}.zero_points")
        form = _format(raw, scales, zeros, whole, stated) if len(whole) == 2 else None
        return Stored(name, kind, parts, rows, raw, scales, zeros, form, whole[1]) if form is not None else None
    expected = {"plain": whole, "transposed": whole[::-1], "heads": (len(parts), *shapes[0])}[kind]
    return Stored(name, kind, parts, rows, raw) if raw.shape == expected and raw.dtype != "uint8" else None


def _parts(base: str) -> tuple[str, ...]:
    """`a.b.w1.weight+w3` -> (a.b.w1.weight, a.b.w3.weight)."""
    first, *others = base.split("+")
    owner, _, kind = first.rpartition(".")
    return (first, *(f"{owner.rpartition('.')[0]}.{other}.{kind}" for other in others))


def _heads(norm: str, source: Mapping[str, tuple[int, ...]]) -> int:
    """How many heads the projection makes that this norm is of."""
    return source[norm.replace("_layernorm.", "_proj.")][0] // source[norm][0]


def _format(
    codes: Raw, scales: Raw | None, zeros: Raw | None, shape: tuple[int, ...], stated: tuple[int, int] | None
) -> BlockFormat | None:
    """The format that gives codes and scales these shapes.

    Of a matrix narrower than a block, half a block of 8 bits looks like a whole one of 4: then the operator decides.
    """
    formats = [BlockFormat(bits, size, symmetric=zeros is None) for bits in _BITS for size in BLOCK_SIZES]
    found = []
    for form in formats:
        blocks = form.blocks(shape[1])
        fits = codes.shape == (shape[0], blocks, form.block_size * form.bits // 8) and codes.dtype == "uint8"
        if fits and scales is not None and scales.shape == (shape[0], blocks):
            found.append(form)
    return next((form for form in found if (form.bits, form.block_size) == stated), found[0] if found else None)


def raw_tensor(tensor: TensorProto, folder: Path) -> Raw:
    """The bytes of an initializer with external data, if any, in `folder` (`verify.variants.open_graph` checks that).

    Raises:
        ArtifactError: the values in the graph do not fill its shape.
    """
    shape = tuple(tensor.dims)
    if tensor.data_location != TensorProto.EXTERNAL:
        try:
            inline = onnx.numpy_helper.to_array(tensor)
        except (ValueError, TypeError) as error:
            raise ArtifactError(f"initializer {shown(tensor.name)} is damaged ({error}); build it again") from error
        return Raw(tensor.name, _TYPES[tensor.data_type], shape, None, 0, inline)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = folder / entries["location"]
    return Raw(tensor.name, _TYPES[tensor.data_type], shape, location, int(entries.get("offset", 0)), None)
