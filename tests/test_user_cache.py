"""Entries of the user's cache: read with suspicion, written whole, and never more of them than the limits allow."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lfm2export import user_cache
from lfm2export.user_cache import cache_folder, read_entry, write_entry

CONTENT = b"what was kept \n\x00 twice"


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    path = tmp_path / "cache" / "kind" / "key.graph"
    write_entry(path, CONTENT)
    return path


def test_what_is_written_is_read(entry: Path) -> None:
    assert read_entry(entry) == CONTENT
    assert read_entry(entry.with_name("other.graph")) is None
    assert entry.parent.stat().st_mode & 0o077 == 0
    write_entry(entry, b"")
    assert read_entry(entry) == b""
    assert [path.name for path in entry.parent.iterdir()] == ["key.graph"]


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _anybodys(path: Path) -> None:
    path.chmod(0o666)


def _a_groups(path: Path) -> None:
    path.chmod(0o660)


def _too_long(path: Path) -> None:
    with path.open("ab") as file:
        file.truncate(user_cache.MAX_ENTRY_BYTES + 1)


@pytest.mark.parametrize("harm", [_flip, _cut, _empty, _link, _pipe, _folder, _anybodys, _a_groups, _too_long])
def test_what_is_not_whole_or_not_this_users_is_not_there(harm: Callable[[Path], None], entry: Path) -> None:
    harm(entry)
    assert read_entry(entry) is None


@pytest.mark.parametrize("harm", [_flip, _cut, _empty, _link, _pipe, _anybodys, _too_long])
def test_and_is_replaced(harm: Callable[[Path], None], entry: Path) -> None:
    harm(entry)
    write_entry(entry, CONTENT)
    assert read_entry(entry) == CONTENT and not entry.is_symlink()


def test_an_entry_of_another_user_is_not_read(entry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = entry.stat().st_uid + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    assert read_entry(entry) is None


def test_a_place_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    write_entry(tmp_path / "file" / "kind" / "key.graph", CONTENT)
    write_entry(Path(os.devnull) / "kind" / "key.graph", CONTENT)
    assert read_entry(tmp_path / "file" / "kind" / "key.graph") is None
    assert (tmp_path / "file").read_text() == "no folder"


def test_the_oldest_go_first_and_what_is_used_is_young(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_cache, "MAX_ENTRIES", 3)
    paths = [tmp_path / f"{number}.graph" for number in range(4)]
    for number, path in enumerate(paths[:3]):
        write_entry(path, b"x")
        os.utime(path, (1e9 + number, 1e9 + number))
    assert read_entry(paths[0]) == b"x"
    write_entry(paths[3], b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.graph", "2.graph", "3.graph"]


def test_bytes_are_limited_and_other_files_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_cache, "MAX_BYTES", 300)
    (tmp_path / "notes.txt").write_text("x" * 1000)
    stale, fresh = (tmp_path / f".a.graph.{tag * 8}.lfm2export.partial" for tag in "0f")
    stale.write_text("half")
    fresh.write_text("half")
    os.utime(stale, (time.time() - 2 * user_cache.STALE_SECONDS,) * 2)
    for number in range(4):
        write_entry(tmp_path / f"{number}.graph", b"x" * 60)  # 125 bytes each
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"notes.txt", fresh.name, "2.graph", "3.graph"}
    monkeypatch.setattr(user_cache, "MAX_ENTRY_BYTES", 100)
    write_entry(tmp_path / "long.graph", b"x" * 60)
    assert not (tmp_path / "long.graph").exists()


def test_writers_at_once_leave_one_whole_entry(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from lfm2export.user_cache import write_entry\n"
    code += "for _ in range(20): write_entry(Path(sys.argv[1]), sys.argv[2].encode() * 100_000)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    path = tmp_path / "key.graph"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), mark], env=environment) for mark in "abc"]
    seen = False
    while any(writer.poll() is None for writer in writers):
        found = read_entry(path)
        assert found is not None or not seen
        seen = found is not None and len(set(found)) == 1
    assert seen
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["key.graph"]


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("LFM2EXPORT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder("kind") == tmp_path / "home" / ".cache" / "lfm2export" / "kind"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder("kind") == tmp_path / "home" / "Library" / "Caches" / "lfm2export" / "kind"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder("kind") == tmp_path / "home" / "Library" / "Caches" / "lfm2export" / "kind"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("kind") == tmp_path / "xdg" / "lfm2export" / "kind"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LFM2EXPORT_CACHE", "here")
    assert cache_folder("kind") == tmp_path / "here" / "kind"
    monkeypatch.setenv("LFM2EXPORT_CACHE", "")
    assert cache_folder("kind") == tmp_path / "xdg" / "lfm2export" / "kind"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_folder("kind") == tmp_path / "local" / "lfm2export" / "kind"
    monkeypatch.delenv("LOCALAPPDATA")
    assert cache_folder("kind") is None
