"""Bytes without a meaning: flipped, lost, doubled, moved, of another encoding."""

from __future__ import annotations

import random

from benchmarks.faults.content import Content
from benchmarks.faults.mutators.kinds import STRINGS, Mutator


def flip(data: bytes, dice: random.Random) -> tuple[Content, str]:
    found = bytearray(data)
    places = [dice.randrange(len(found)) for _ in range(dice.choice((1, 1, 2, 8)))] if found else []
    for place in places:
        found[place] ^= 1 << dice.randrange(8)
    return Content(bytes(found)), f"a bit at {', '.join(map(str, places))}"


def overwrite(data: bytes, dice: random.Random) -> tuple[Content, str]:
    start, stop = _range(data, dice, 16)
    put = dice.choice((b"\0", b"\xff", b"\x80", b" ", b"\n", b'"', b"{", dice.randbytes(1))) * (stop - start)
    return Content(data[:start] + put + data[stop:]), f"{put[:4]!r} over [{start}, {stop})"


def insert(data: bytes, dice: random.Random) -> tuple[Content, str]:
    at = dice.randrange(len(data) + 1)
    put = dice.choice((dice.randbytes(dice.randrange(1, 9)), dice.choice(STRINGS).encode("utf-8", "replace")))
    return Content(data[:at] + put + data[at:]), f"{put[:20]!r} at {at}"


def drop(data: bytes, dice: random.Random) -> tuple[Content, str]:
    start, stop = _range(data, dice, max(1, len(data) // 4))
    return Content(data[:start] + data[stop:]), f"[{start}, {stop}) gone"


def truncate(data: bytes, dice: random.Random) -> tuple[Content, str]:
    stop = dice.choice((0, 1, len(data) // 2, max(0, len(data) - 1), dice.randrange(len(data) + 1)))
    return Content(data[:stop]), f"only the first {stop} bytes"


def splice(data: bytes, dice: random.Random) -> tuple[Content, str]:
    start, stop = _range(data, dice, max(1, len(data) // 2))
    at = dice.randrange(len(data) + 1)
    return Content(data[:at] + data[start:stop] + data[at:]), f"[{start}, {stop}) again at {at}"


def repeat(data: bytes, dice: random.Random) -> tuple[Content, str]:
    count = dice.choice((2, 2, 3, 10))
    return Content(data * count), f"{count} times"


def pad(data: bytes, dice: random.Random) -> tuple[Content, str]:
    byte, count = dice.choice((b" ", b"\0", b"\n", b"[", b"a")), dice.choice((1, 100, 100_000, 20_000_000))
    if dice.random() < 0.5:
        return Content(data + byte * count), f"{byte!r} {count} times at the end"
    return Content(byte * count + data), f"{byte!r} {count} times at the start"


def encoding(data: bytes, dice: random.Random) -> tuple[Content, str]:
    name = dice.choice(("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "utf-7", "cp037"))
    text = data.decode("utf-8", "replace")
    return Content(text.encode(name, "replace")), f"as {name}"


def line_ends(data: bytes, dice: random.Random) -> tuple[Content, str]:
    end = dice.choice((b"\r\n", b"\r", b"\x0b", "\u2028".encode(), b""))
    return Content(data.replace(b"\n", end)), f"lines end with {end!r}"


def marks(data: bytes, dice: random.Random) -> tuple[Content, str]:
    mark = dice.choice((b"\xef\xbb\xbf", b"\xef\xbb\xbf" * 2, b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff"))
    return Content(mark + data), f"{mark!r} before it"


def _range(data: bytes, dice: random.Random, most: int) -> tuple[int, int]:
    start = dice.randrange(len(data) + 1)
    return start, min(len(data), start + dice.randrange(1, most + 1))


MUTATORS: dict[str, Mutator] = {
    "flip": flip,
    "overwrite": overwrite,
    "insert": insert,
    "drop": drop,
    "truncate": truncate,
    "splice": splice,
    "repeat": repeat,
    "pad": pad,
    "encoding": encoding,
    "line_ends": line_ends,
    "marks": marks,
}
