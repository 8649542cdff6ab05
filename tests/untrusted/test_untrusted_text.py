"""UTF-8 texts from outside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lfm2export.errors import SourceError
from lfm2export.untrusted.text import decode, read_bytes, read_text


def refusal(path: Path, **options: int) -> str:
    with pytest.raises(SourceError) as caught:
        read_text(path, SourceError, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@given(text=st.text(), mark=st.booleans())
def test_a_text_comes_back_without_its_mark_and_with_its_line_ends(text: str, mark: bool) -> None:
    data = (b"\xef\xbb\xbf" if mark else b"") + text.encode()
    expected = text if mark else text.removeprefix("\ufeff")
    assert decode(data, "x", SourceError, "save it") == expected


@given(st.binary(max_size=20))
def test_any_bytes_give_a_text_or_one_line(data: bytes) -> None:
    try:
        decode(data, "x", SourceError, "save it as UTF-8")
    except SourceError as error:
        assert str(error).startswith("x is not UTF-8 (") and str(error).endswith("; save it as UTF-8")


def test_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"12345")
    assert read_bytes(path, SourceError, 5) == b"12345"
    assert refusal(path, limit=4) == (
        f"{path} has more than 4 bytes, expected at most that many; copy or download it again"
    )


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_other_encodings(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("größe".encode(encoding))
    assert "is not UTF-8 (" in refusal(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nothing")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("none", "link"):
        assert refusal(tmp_path / name).endswith("is missing; copy or download it again")
    assert "is a pipe or a device, expected a file; write what it gives to a file" in refusal(tmp_path / "pipe")
    assert "is a folder, expected a file" in refusal(tmp_path)
    assert "is a link to /dev/zero, outside" in refusal(tmp_path / "zero")


def test_a_link_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "LICENSE").symlink_to("../secret")
    assert "outside" in refusal(tmp_path / "folder" / "LICENSE")
