"""Texts that the user names: to calibrate on, or to score. Plain or .xz, and no larger than memory affords."""

from __future__ import annotations

import hashlib
import lzma
from dataclasses import dataclass, field
from pathlib import Path

from lfm2export.errors import PromptError
from lfm2export.untrusted.escape import one_line
from lfm2export.untrusted.paths import anywhere
from lfm2export.untrusted.text import decode, read_bytes

#: Bytes of a text, unpacked: 16 million tokens, a hundred times what any step here uses.
MAX_BYTES = 64 << 20

#: Memory that unpacking may take; `xz -9` needs 65 MB.
UNPACK_BYTES = 128 << 20


@dataclass(frozen=True)
class TextFile:
    """name: of the file, for reports. sha256: of its bytes as they lie on disk."""

    name: str
    text: str = field(repr=False)
    sha256: str


def read_text_file(path: Path) -> TextFile:
    """The UTF-8 text of `path`, unpacked if its name ends in .xz.

    Raises:
        PromptError: it cannot be read, is not UTF-8, or is longer than MAX_BYTES.
    """
    data = read_bytes(path, PromptError, MAX_BYTES, folder=anywhere(path), remedy="give a UTF-8 text")
    unpacked = _unpacked(path, data) if path.suffix == ".xz" else data
    text = decode(unpacked, path, PromptError, "give a UTF-8 text")
    return TextFile(one_line(path.name), text, hashlib.sha256(data).hexdigest())


def _unpacked(path: Path, data: bytes) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while data:
        stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=UNPACK_BYTES)
        try:
            piece = stream.decompress(data, MAX_BYTES + 1 - size)
        except (lzma.LZMAError, EOFError) as error:
            raise PromptError(f"{path} cannot be unpacked ({error}); pack it again with xz") from error
        pieces.append(piece)
        size += len(piece)
        if size > MAX_BYTES:
            raise PromptError(f"{path} unpacks to more than {MAX_BYTES:,} bytes, expected at most that many; cut it")
        if not stream.eof:
            raise PromptError(f"{path} is cut off; copy or download it again")
        data = stream.unused_data.lstrip(b"\0")  # padding between streams
    return b"".join(pieces)
