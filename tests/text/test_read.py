"""Texts that the user names: plain or packed, and bounded."""

from __future__ import annotations

import hashlib
import lzma
from pathlib import Path

import pytest

from lfm2export.errors import PromptError
from lfm2export.text import read
from lfm2export.text.read import read_text_file


def written(folder: Path, data: bytes, name: str = "text.txt.xz") -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def test_plain_and_packed_texts(tmp_path: Path) -> None:
    text = "é水\r\n" * 1000
    plain = read_text_file(written(tmp_path, b"\xef\xbb\xbf" + text.encode(), "text.txt"))
    assert (plain.name, plain.text) == ("text.txt", text)
    packed = lzma.compress(text[:40].encode()) + b"\0" * 4 + lzma.compress(text[40:].encode())
    found = read_text_file(written(tmp_path, packed))
    assert (found.name, found.text) == ("text.txt.xz", text)
    assert found.sha256 == hashlib.sha256(packed).hexdigest()


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    bomb = written(tmp_path, lzma.compress(b"a" * (read.MAX_BYTES + 1), preset=0))
    assert bomb.stat().st_size < 100_000
    with pytest.raises(PromptError, match="unpacks to more than 67,108,864 bytes"):
        read_text_file(bomb)


def test_many_small_streams_are_one_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "MAX_BYTES", 1000)
    assert (
        read_text_file(written(tmp_path, lzma.compress(b"a" * 500) + lzma.compress(b"b" * 500))).text
        == "a" * 500 + "b" * 500
    )
    with pytest.raises(PromptError, match="unpacks to more than 1,000 bytes"):
        read_text_file(written(tmp_path, lzma.compress(b"a" * 500) + lzma.compress(b"b" * 501)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no xz at all", "cannot be unpacked"),
        (lzma.compress(b"a" * 1000)[:-20], "cut off|cannot be unpacked"),
        (lzma.compress(b"\xff\xff"), "is not UTF-8"),
        (lzma.compress(b"a", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}]), "cannot be unpacked"),
    ],
)
def test_what_cannot_be_unpacked(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        read_text_file(written(tmp_path, data))
    assert "\n" not in str(caught.value)
    with pytest.raises(PromptError, match="is missing; give a UTF-8 text"):
        read_text_file(tmp_path / "nothing.xz")
