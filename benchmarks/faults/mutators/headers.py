"""safetensors: the eight bytes of length, the header, and the data behind it, each changed by itself."""

from __future__ import annotations

import random
import struct
from typing import Any

from benchmarks.faults.content import Content
from benchmarks.faults.mutators import byte_level, json_values
from benchmarks.faults.mutators.kinds import Mutator

DTYPES = ("F64", "F8_E4M3", "I64", "BOOL", "U8", "F16", "BF16", "F32", "", "f32", "C64", "F4", "../x", "x" * 1000)
SHAPES: tuple[Any, ...] = (
    [],
    [0],
    [1],
    [-1],
    [2**31, 2**31],
    [2**63],
    [1] * 1000,
    [64, 0],
    [1.5],
    ["a"],
    [[1]],
    [True],
    None,
)
LENGTHS = (0, 1, 2, 7, 2**31, 2**40, 2**63, 2**64 - 1, 99_999_999, 100_000_001)


def _split(data: bytes) -> tuple[int, bytes, bytes]:
    """(stated length, header, data)."""
    length = struct.unpack("<Q", data[:8].ljust(8, b"\0"))[0]
    return length, data[8 : 8 + length], data[8 + length :]


def _join(header: bytes, data: bytes, length: int | None = None) -> Content:
    return Content(struct.pack("<Q", len(header) if length is None else length) + header + data)


def length(data: bytes, dice: random.Random) -> tuple[Content, str]:
    stated, header, rest = _split(data)
    wrong = dice.choice((*LENGTHS, stated - 1 if stated else 0, stated + 1, len(data), len(data) - 8)) % 2**64
    return _join(header, rest, wrong), f"a header of {wrong} bytes, it says"


def header(data: bytes, dice: random.Random) -> tuple[Content, str]:
    """Any change of the header as JSON; its length is right."""
    _, text, rest = _split(data)
    name = dice.choice(sorted(json_values.MUTATORS))
    changed, said = json_values.MUTATORS[name](text, dice)
    return _join(changed.data, rest), said


def header_bytes(data: bytes, dice: random.Random) -> tuple[Content, str]:
    _, text, rest = _split(data)
    name = dice.choice(("flip", "overwrite", "insert", "drop", "truncate", "encoding", "marks", "pad"))
    changed, said = byte_level.MUTATORS[name](text, dice)
    return _join(changed.data, rest), said


def entry(data: bytes, dice: random.Random) -> tuple[Content, str]:
    """One tensor's dtype, shape or offsets."""
    _, text, rest = _split(data)
    try:
        document = json_values.parse(text)
    except (ValueError, RecursionError):
        return byte_level.flip(data, dice)
    pairs = document if isinstance(document, json_values.Pairs) else []
    entries = [pair for pair in pairs if isinstance(pair[1], json_values.Pairs)]
    if not entries:
        return byte_level.flip(data, dice)
    name, fields = dice.choice(entries)
    field = dice.choice(("dtype", "shape", "data_offsets"))
    numbers = (0, 1, -1, 2**62, 2**63, 2**64, len(rest), len(rest) + 1, dice.randrange(1 + len(rest)))
    put = {
        "dtype": dice.choice(DTYPES),
        "shape": dice.choice(SHAPES),
        "data_offsets": [dice.choice(numbers), dice.choice(numbers)],
    }[field]
    for pair in fields:
        if pair[0] == field:
            pair[1] = put
    text = json_values.write(document).encode("utf-8", "surrogatepass")
    return _join(text, rest), f"{str(name)[:40]!r} has the {field} {str(put)[:60]}"


def values(data: bytes, dice: random.Random) -> tuple[Content, str]:
    """Values that are not finite, or bits of chance, somewhere in the data."""
    _, text, rest = _split(data)
    if len(rest) < 4:
        return byte_level.flip(data, dice)
    at = dice.randrange(len(rest) // 2) * 2
    put = dice.choice((b"\xc0\x7f", b"\x80\x7f", b"\x80\xff", b"\xff\xff", dice.randbytes(64)))
    return _join(text, rest[:at] + put + rest[at + len(put) :]), f"{put[:4]!r} at {at} of the data"


def amount(data: bytes, dice: random.Random) -> tuple[Content, str]:
    """More or less data than the header says."""
    _, text, rest = _split(data)
    count = dice.choice((1, 8, 4096, len(rest)))
    if dice.random() < 0.5:
        return _join(text, rest[:-count]), f"{count} bytes of data are missing"
    return _join(text, rest + b"\0" * count), f"{count} bytes after the data"


MUTATORS: dict[str, Mutator] = {
    "length": length,
    "header": header,
    "header_again": header,
    "header_bytes": header_bytes,
    "entry": entry,
    "entry_again": entry,
    "values": values,
    "amount": amount,
}
