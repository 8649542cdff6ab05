"""The one look at an ONNX file from outside before a library parses it, or a runtime opens it.

It walks protobuf's wire format and reads no weight: a field is a key (number * 8 + wire type) and a value, and a nested
message is its length and its fields. Refused, each in one line: what is no ONNX model, more parts or a deeper nesting
than any model of the family has, a tensor whose shape, bytes or external data cannot be.

    external data    every `location` in the file, wherever it stands, is a plain name; data_path() says where it leads
    rewritten()      the same model with other locations, or without the values that it holds itself
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from lfm2export.errors import ArtifactError
from lfm2export.untrusted.paths import checked_link, is_plain_path, shown

if TYPE_CHECKING:
    import onnx

#: Fields in all. A graph of 2.6B parameters has some 30,000; a parser takes microseconds and hundreds of bytes each.
MAX_FIELDS = 400_000
#: Bytes that are no raw tensor values.
MAX_GRAPH_BYTES = 64 << 20
#: Messages inside each other; protobuf itself stops at 100. A graph within a graph takes three.
MAX_DEPTH = 48
#: Axes of a tensor, and its elements.
MAX_RANK, MAX_ELEMENTS = 32, 1 << 48
#: Data files; some exporters write one for each tensor.
MAX_DATA_FILES = 2000
#: Values of the file itself above which :func:`rewritten` leaves them out: what shapes are computed from is smaller.
SMALL = 1024

#: Message -> number of the field that holds another message -> which. (onnx.proto)
MESSAGES: Mapping[str, Mapping[int, str]] = {
    "Model": {7: "Graph", 8: "Leaf", 14: "Leaf", 20: "Training", 25: "Function", 26: "Device"},
    "Training": {1: "Graph", 2: "Graph", 3: "Leaf", 4: "Leaf"},
    "Function": {7: "Node", 9: "Leaf", 11: "Attribute", 12: "ValueInfo", 14: "Leaf"},
    "Graph": {1: "Node", 5: "Tensor", 11: "ValueInfo", 12: "ValueInfo", 13: "ValueInfo", 14: "Annotation",
              15: "Sparse", 16: "Leaf"},
    "Node": {5: "Attribute", 9: "Leaf", 10: "NodeDevice"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 14: "Type", 15: "Type", 22: "Sparse",
                  23: "Sparse"},
    "Tensor": {3: "Numbers", 13: "Entry", 16: "Leaf"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "ValueInfo": {2: "Type", 4: "Leaf"},
    "Type": {1: "TensorType", 4: "Nested", 5: "Map", 7: "Leaf", 8: "TensorType", 9: "Nested"},
    "TensorType": {2: "Shape"},
    "Nested": {1: "Type"},
    "Map": {2: "Type"},
    "Shape": {1: "Leaf"},
    "Annotation": {2: "Leaf"},
    "Device": {},
    "NodeDevice": {2: "Sharding"},
    "Sharding": {3: "Numbers", 4: "ShardedDim"},
    "ShardedDim": {2: "Leaf"},
    "Entry": {},
    "Leaf": {},
    "Numbers": {},
}  # fmt: skip

#: Message -> its fields that are texts. A parser hands out what is not UTF-8 as bytes.
TEXTS: Mapping[str, tuple[int, ...]] = {
    "Model": (2, 3, 4, 6), "Graph": (2, 10), "Function": (1, 4, 5, 6, 8, 10, 13), "Node": (1, 2, 3, 4, 6, 7, 8),
    "Attribute": (1, 13, 21), "Tensor": (8, 12), "ValueInfo": (1, 3), "Type": (6,), "Annotation": (1,),
    "Device": (1, 3), "NodeDevice": (1,), "Sharding": (1,), "Entry": (1, 2), "Leaf": (1, 2, 3),
}  # fmt: skip

#: Bits of an element by its code in TensorProto.DataType; strings have none.
_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
         17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2}  # fmt: skip

#: Messages below which a tensor can be.
_HOLD_TENSORS = ("Training", "Function", "Graph", "Node", "Attribute", "Tensor", "Sparse")

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

Buffer = bytes | mmap.mmap
#: (number, wire type, where its key begins, where its value begins, where it ends).
Field = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class External:
    """A tensor whose values are in another file, `location`, from `offset` on; length: bytes, as the file states it.

    end: where its values end in that file, by its shape; where `length` is stated, the two agree.
    """

    name: str
    location: str
    offset: int
    length: int | None
    end: int


class Damaged(Exception):
    """Why the bytes are no model that can be read; it never leaves this module."""


def scan_file(path: Path) -> tuple[External, ...]:
    """Check the ONNX file at `path`; the external data that it refers to.

    Raises:
        ArtifactError: it cannot be read, or is refused; see the top of this module.
    """
    with opened(path) as data:
        return scan(data, path)


def read_model(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """The model in `path`; external data stays where it is. Every reader of a graph takes it from here.

    weights: False leaves out what tensors of more than :data:`SMALL` bytes hold inside the file.

    Raises:
        ArtifactError: as :func:`scan_file`.
    """
    with opened(path) as data:
        scan(data, path)
        content = data[:] if weights else rewritten(data, weights=False)
    return parse_model(content, path)


def parse_model(content: bytes, what: object) -> onnx.ModelProto:
    """The model in `content`, which :func:`scan` has passed, or which is of our own making.

    Raises:
        ArtifactError: it cannot be parsed.
    """
    import onnx

    try:
        return onnx.load_model_from_string(content)
    except Exception as problem:  # protobuf's DecodeError, for what the walk lets pass
        line = " ".join(str(problem).split())[:200]
        raise ArtifactError(f"{what} is not a readable ONNX model ({line}); copy or download it again") from problem


def opened(path: Path) -> mmap.mmap:
    """The bytes of `path`, mapped.

    Raises:
        ArtifactError: it cannot be read, or is empty.
    """
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as problem:  # an empty file cannot be mapped
        raise ArtifactError(f"{path} is not a readable ONNX model ({problem}); copy or download it again") from problem


def scan(data: Buffer, what: object) -> tuple[External, ...]:
    """As :func:`scan_file`, for bytes that are called `what` in messages."""
    walk = _Walk()
    try:
        walk.message(data, 0, len(data), "Model", 0)
        if not walk.graphs:
            raise Damaged("it holds no graph")
        if len({tensor.location for tensor in walk.external}) > MAX_DATA_FILES:
            raise Damaged(f"it names more than {MAX_DATA_FILES:,} data files, expected at most that many")
    except Damaged as problem:
        raise ArtifactError(f"{what} is not a readable ONNX model ({problem}); copy or download it again") from problem
    return tuple(walk.external)


def data_path(graph: Path, location: str, folder: Path) -> Path:
    """Where the data file `location` of the model file `graph` lies; it need not exist.

    Args:
        folder: the artifact that holds `graph`; links are followed inside it, or into the blobs of its hub cache.

    Raises:
        ArtifactError: it is no plain name, or a link that leads elsewhere.
    """
    if not is_plain_path(location):
        raise ArtifactError(
            f"{graph} names the data file {shown(location)}, expected a plain name beside it; do not trust it: copy or "
            "download it again"
        )
    return checked_link(graph.parent / location, folder, ArtifactError)


def rewritten(data: Buffer, locations: Mapping[str, str] | None = None, *, weights: bool = True) -> bytes:
    """A model that :func:`scan` has passed, with external data at other `locations` (old name -> new).

    weights: False leaves out what tensors of more than :data:`SMALL` bytes hold inside the file.
    """

    def replacement(number: int, start: int, end: int) -> bytes | None:
        """What replaces a field of a tensor, None: it stays."""
        if number == 9 and not weights and end - start > SMALL:
            return b""
        if number == 13 and locations:
            entry = {found: _text(data, first, last) for found, _, _, first, last in fields(data, start, end)}
            if entry.get(1) == "location" and entry.get(2) in locations:
                return _field(13, _field(1, b"location") + _field(2, locations[entry[2]].encode()))
        return None

    return b"".join(_rebuilt(data, 0, len(data), "Model", replacement))


class _Walk:
    """One pass over a file: what is counted, and what is found."""

    def __init__(self) -> None:
        self.fields = 0
        self.bytes = 0
        self.graphs = 0
        self.external: list[External] = []

    def message(self, data: Buffer, start: int, end: int, kind: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise Damaged(f"nested too deeply, expected at most {MAX_DEPTH} messages in each other")
        if kind == "Tensor":
            self._tensor(data, start, end)
            return
        self.graphs += kind == "Graph"
        inner, texts = MESSAGES[kind], TEXTS.get(kind, ())
        for number, wire, _, first, last in self._counted(data, start, end):
            found = inner.get(number)
            if number in texts and wire == _BYTES:
                _text(data, first, last)
            if found is not None and wire == _BYTES:
                self.message(data, first, last, found, depth + 1)
            elif found is not None:
                raise Damaged(f"field {number} of a {kind.lower()} is no message")
            else:
                self._add(last - first)

    def _counted(self, data: Buffer, start: int, end: int) -> Iterator[Field]:
        for field in fields(data, start, end):
            self.fields += 1
            if self.fields > MAX_FIELDS:
                raise Damaged(f"it has more than {MAX_FIELDS:,} parts, expected at most that many")
            yield field

    def _add(self, count: int) -> None:
        self.bytes += count
        if self.bytes > MAX_GRAPH_BYTES:
            raise Damaged(f"it has more than {MAX_GRAPH_BYTES:,} bytes beside weights, expected at most that many")

    def _tensor(self, data: Buffer, start: int, end: int) -> None:
        name, dtype, raw, is_external = "", 0, None, False
        dims: list[int] = []
        entries: dict[str, str] = {}
        for number, wire, _, first, last in self._counted(data, start, end):
            if number == 1:
                dims += islice(_integers(data, wire, first, last), MAX_RANK + 1)
                if len(dims) > MAX_RANK:
                    raise Damaged(f"a tensor has more than {MAX_RANK} axes")
            elif number in (2, 14) and wire == _VARINT:
                value, _ = _varint(data, first, last)
                dtype, is_external = (value, is_external) if number == 2 else (dtype, is_external or value == 1)
            elif number in TEXTS["Tensor"] and wire == _BYTES:
                name = _text(data, first, last) if number == 8 else name
                self._add(last - first)
            elif number == 9 and wire == _BYTES:
                raw = last - first
            elif number == 13 and wire == _BYTES:
                self._location(data, first, last, entries)
            else:
                self._add(last - first)
        self._check(name, dims, dtype, raw)
        if is_external or entries:
            self.external.append(_external(name, entries, dims, dtype))

    def _location(self, data: Buffer, start: int, end: int, entries: dict[str, str]) -> None:
        strings = {1: "", 2: ""}
        for number, wire, _, first, last in self._counted(data, start, end):
            self._add(last - first)
            if wire == _BYTES and number in strings:
                strings[number] = _text(data, first, last)
        key, value = strings[1], strings[2]
        if key in entries:
            raise Damaged(f"a tensor states the {shown(key)} of its external data twice")
        entries[key] = value

    def _check(self, name: str, dims: list[int], dtype: int, raw: int | None) -> None:
        if any(size >= 1 << 63 for size in dims) or math.prod(dims) > MAX_ELEMENTS:
            raise Damaged(f"tensor {shown(name)} has the shape {shown([_signed(size) for size in dims])}")
        bits = _BITS.get(dtype)
        if raw is not None and bits is not None and raw != _bytes(dims, bits):
            raise Damaged(f"tensor {shown(name)} holds {raw} bytes, expected {_bytes(dims, bits)} for its shape")


def _external(name: str, entries: Mapping[str, str], dims: list[int], dtype: int) -> External:
    if not entries.get("location"):
        raise Damaged(f"the external data of {shown(name)} has no location")
    numbers: dict[str, int | None] = {}
    for key in ("offset", "length"):
        text = entries.get(key)
        if text is not None and not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise Damaged(f"the external data of {shown(name)} has the {key} {shown(text)}, expected a count of bytes")
        numbers[key] = None if text is None else int(text)
    bits = _BITS.get(dtype)
    length = numbers["length"]
    if length is not None and bits is not None and length != _bytes(dims, bits):
        raise Damaged(f"the external data of {shown(name)} has {length} bytes, expected {_bytes(dims, bits)}")
    offset = numbers["offset"] or 0
    end = offset + (length if length is not None else _bytes(dims, bits or 0))
    return External(name, entries["location"], offset, length, end)


def fields(data: Buffer, start: int, end: int) -> Iterator[Field]:
    """Every field of the message in data[start:end]."""
    while start < end:
        begin = start
        key, start = _varint(data, start, end)
        number, wire = key >> 3, key & 7
        if wire == _BYTES:
            size, start = _varint(data, start, end)
        elif wire == _VARINT:
            size = _varint(data, start, end)[1] - start
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise Damaged("it is no protobuf message")
        if number == 0 or start + size > end:
            raise Damaged("it is no protobuf message, or ends too early")
        yield number, wire, begin, start, start + size
        start += size


def _varint(data: Buffer, start: int, end: int) -> tuple[int, int]:
    """(value, where it ends)."""
    value = 0
    for index in range(start, min(end, start + 10)):
        byte = data[index]
        value |= (byte & 127) << (7 * (index - start))
        if byte < 128:
            return value & (1 << 64) - 1, index + 1
    raise Damaged("it is no protobuf message, or ends too early")


def _integers(data: Buffer, wire: int, start: int, end: int) -> Iterator[int]:
    """A repeated integer, packed or not."""
    if wire not in (_VARINT, _BYTES):
        raise Damaged("a shape is no list of integers")
    while start < end:
        value, start = _varint(data, start, end)
        yield value


def _text(data: Buffer, start: int, end: int) -> str:
    try:
        return data[start:end].decode()
    except UnicodeDecodeError as problem:
        raise Damaged("a name in it is not UTF-8") from problem


def tensor_bytes(dims: list[int], dtype: int) -> int:
    """Bytes of a tensor by its shape and its code in TensorProto.DataType; 0 for strings and unknown codes."""
    return _bytes(dims, _BITS.get(dtype, 0))


def _bytes(dims: list[int], bits: int) -> int:
    return math.ceil(math.prod(dims) * bits / 8)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _rebuilt(
    data: Buffer, start: int, end: int, kind: str, replace: Callable[[int, int, int], bytes | None]
) -> list[bytes]:
    """The parts of a message whose tensors' fields are perhaps replaced."""
    parts: list[bytes] = []
    inner = MESSAGES[kind]
    kept = start
    for number, wire, begin, first, last in fields(data, start, end):
        held = inner.get(number, "")
        new = None
        if kind == "Tensor":
            new = replace(number, first, last) if wire == _BYTES else None
        elif held in _HOLD_TENSORS:
            new = _field(number, b"".join(_rebuilt(data, first, last, held, replace)))
        if new is not None:
            parts += [data[kept:begin], new]
            kept = last
    parts.append(data[kept:end])
    return parts


def _field(number: int, value: bytes) -> bytes:
    return _encoded(number << 3 | _BYTES) + _encoded(len(value)) + value


def _encoded(value: int) -> bytes:
    """A varint."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
