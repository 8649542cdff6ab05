"""A file is the old one or the new one, and links are replaced."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from lfm2export.atomic import exchange, is_partial, remove_partials, write_atomically
from staged import names


def test_the_exchange_is_what_linux_uses(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("renameat2 is Linux")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "first").touch()
    assert exchange(tmp_path / "a", tmp_path / "b")
    assert names(tmp_path / "b") == ["first"]
    assert not exchange(tmp_path / "a", tmp_path / "missing")


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    blob = tmp_path / "blobs" / "1"
    blob.parent.mkdir()
    blob.write_text("blob")
    card = tmp_path / "snapshots" / "abc" / "README.md"
    card.parent.mkdir(parents=True)
    card.symlink_to("../../blobs/1")
    assert write_atomically(card, b"new") == card
    assert not card.is_symlink() and card.read_text() == "new" and blob.read_text() == "blob"
    assert names(card.parent) == ["README.md"]


def test_the_old_file_stays_until_the_new_one_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "parity.json"
    path.write_text("old")
    seen: list[str] = []
    real = os.fsync

    def look(descriptor: int) -> None:
        [partial] = [name for name in names(tmp_path) if name != "parity.json"]
        assert is_partial(partial)
        seen.append(path.read_text() + (tmp_path / partial).read_text())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    write_atomically(path, b"new")
    assert seen == ["oldnew"] and path.read_text() == "new" and names(tmp_path) == ["parity.json"]


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "parity.json"
    path.write_text("old")

    def fail(descriptor: int) -> None:
        raise OSError("full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="full"):
        write_atomically(path, b"new")
    assert path.read_text() == "old" and names(tmp_path) == ["parity.json"]


def test_only_what_killed_writes_left_is_removed(tmp_path: Path) -> None:
    ours = ".parity.json.0123abcd.lfm2export.partial"
    others = [".parity.json.partial", "parity.json.0123abcd.lfm2export.partial", ".a.0123abc.lfm2export.partial"]
    for name in (ours, *others):
        (tmp_path / name).touch()
    (tmp_path / ".b.0123abcd.lfm2export.partial").mkdir()
    (tmp_path / ".c.0123abcd.lfm2export.partial").symlink_to(others[0])
    remove_partials(tmp_path)
    kept = [".b.0123abcd.lfm2export.partial", ".c.0123abcd.lfm2export.partial"]
    assert names(tmp_path) == sorted([*others, *kept])
