"""Names that may become paths, and links that may be followed."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfm2export.errors import SourceError
from lfm2export.untrusted.paths import (
    checked_label,
    checked_link,
    find_file,
    is_plain_path,
    named,
    path_inside,
    shown,
)

PLAIN = (
    "model.safetensors",
    "model-00001-of-00002.safetensors",
    "onnx/model.onnx_data_1",
    "a/b/c.json",
    "x+y",
    "_",
    "-",
)

ATTACKS = (
    *("", ".", "..", "../x", "a/../x", "a/..", "./x", "a/./x", "/etc/passwd", "//host/share", "a//b", "a/", "/"),
    *("C:x", "C:\\x", "c:/x", "\\\\host\\share", "..\\x", "a\\b", "file:///x", "~", "~root/x", "$HOME", "%TEMP%"),
    *("con", "CON", "nul.txt", "a/aux", "COM1", "lpt9.onnx", "prn", "com\u00b9", "CONIN$"),
    *("a\0b", "a\nb", "\n", "a\n", "a b", " a", "a ", "a.", ".hidden", "a/.git/config", "a*", "a?", "[a]", "a|b"),
    *("a\u202eb", "\u2025/x", "\uff0e\uff0e/x", "é", "\ud800"),
    *("x" * 256, "a/" * 600 + "a", "x" * 1_000_000),
    *(None, 7, True, ["a"], {"a": 1}, b"a"),
)


@pytest.mark.parametrize("name", PLAIN)
def test_plain_names(tmp_path: Path, name: str) -> None:
    assert is_plain_path(name)
    assert path_inside(tmp_path, name, "the index", SourceError) == tmp_path / name


@pytest.mark.parametrize("name", ATTACKS)
def test_names_that_are_none(tmp_path: Path, name: object) -> None:
    assert not is_plain_path(name)
    with pytest.raises(SourceError) as caught:
        path_inside(tmp_path, name, "the index", SourceError)
    message = str(caught.value)
    assert message.startswith("the index names the file ") and "expected a plain name inside" in message
    assert "\n" not in message and len(message) < 400


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=30) | st.text("./\\:~ab-_\0\n CONcon1", max_size=12))
def test_whatever_passes_stays_inside_on_every_system(name: str) -> None:
    if not is_plain_path(name):
        return
    assert name.isascii() and name.isprintable()
    for kind in (PurePosixPath, PureWindowsPath):
        path = kind(name)
        assert not path.is_absolute() and not path.drive and ".." not in path.parts
        assert path.as_posix() == name  # nothing is taken away or put together
    root = Path("/somewhere/root")
    assert os.path.normpath(root / name) == str(root / name)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=70) | st.text("/.ab-_\\", max_size=70))
def test_labels(name: str) -> None:
    try:
        checked_label(name, "the template", SourceError)
    except SourceError as error:
        assert "\n" not in str(error) and "the template is named" in str(error)
    else:
        assert is_plain_path(name) and "/" not in name and "." not in name and len(name) <= 64


@pytest.mark.parametrize("name", ["default", "tool_use", "a-b", "X9"])
def test_good_labels(name: str) -> None:
    assert checked_label(name, "the template", SourceError) == name


@pytest.mark.parametrize("name", ["", "a.b", "../x", "/x", "con", "x" * 65, "a\n", None, 3])
def test_bad_labels(name: object) -> None:
    with pytest.raises(SourceError, match="expected at most 64 letters"):
        checked_label(name, "the template", SourceError)


# --- links ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one file, and a secret beside it."""
    (tmp_path / "secret").write_text("s")
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    (tmp_path / "folder" / "file").write_text("f")
    return tmp_path / "folder"


def refused(folder: Path, name: str, said: str) -> None:
    with pytest.raises(SourceError) as caught:
        find_file(folder, name, SourceError)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_files_are_found(folder: Path) -> None:
    assert find_file(folder, "file", SourceError) == folder / "file"
    assert find_file(folder, "none", SourceError) is None
    refused(folder, "x" * 300, "cannot be read: File name too long")


def test_links_inside(folder: Path) -> None:
    (folder / "sub" / "link").symlink_to("../file")
    (folder / "absolute").symlink_to(folder / "file")
    (folder / "chain").symlink_to("sub/link")
    for name in ("sub/link", "absolute", "chain"):
        assert find_file(folder, name, SourceError) == folder / name


@pytest.mark.parametrize("target", ["../secret", "sub/../../secret", "/etc/passwd", "/dev/zero"])
def test_links_out(folder: Path, target: str) -> None:
    (folder / "link").symlink_to(target)
    expected = "no regular file" if target == "/dev/zero" else "outside"
    refused(folder, "link", expected)
    with pytest.raises(SourceError, match="outside"):
        path_inside(folder, "link", "the index", SourceError)


def test_a_chain_that_ends_outside_and_a_folder_that_leads_out(folder: Path) -> None:
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("../secret")
    refused(folder, "a", "outside")
    (folder / "out").symlink_to("..", target_is_directory=True)
    refused(folder, "out/secret", "outside")
    with pytest.raises(SourceError, match="outside"):
        path_inside(folder, "out/secret", "the index", SourceError)


def test_circles_and_links_to_nothing(folder: Path) -> None:
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    (folder / "gone").symlink_to("nothing")
    refused(folder, "a", "a link to nothing")
    refused(folder, "gone", "a link to nothing")
    with pytest.raises(SourceError, match="cannot be followed"):
        checked_link(folder / "a", folder, SourceError)


def test_what_is_no_file(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    refused(folder, "sub", "is a folder")
    refused(folder, "pipe", "is no regular file")


def test_a_folder_that_is_a_link_itself(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").symlink_to(folder, target_is_directory=True)
    (folder / "link").symlink_to("file")
    assert find_file(tmp_path / "other", "link", SourceError) == tmp_path / "other" / "link"


def cache(tmp_path: Path) -> Path:
    """A snapshot as the hub's cache lays it out."""
    snapshot = tmp_path / "models--a--b" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    (tmp_path / "models--a--b" / "blobs" / "123").write_text("content")
    (snapshot / "file").symlink_to("../../blobs/123")
    return snapshot


def test_links_into_the_blobs_of_the_hub_cache(tmp_path: Path) -> None:
    snapshot = cache(tmp_path)
    assert find_file(snapshot, "file", SourceError) == snapshot / "file"
    (tmp_path / "mine").symlink_to(snapshot, target_is_directory=True)
    assert find_file(tmp_path / "mine", "file", SourceError) == tmp_path / "mine" / "file"


def test_links_from_a_snapshot_to_anything_else(tmp_path: Path) -> None:
    snapshot = cache(tmp_path)
    (tmp_path / "models--a--b" / "secret").write_text("s")
    (tmp_path / "models--a--b" / "blobs-2").write_text("s")
    for target in ("../../secret", "../../blobs-2", "../../blobs/../secret"):
        (snapshot / "link").unlink(missing_ok=True)
        (snapshot / "link").symlink_to(target)
        refused(snapshot, "link", "outside")
    (tmp_path / "models--a--b" / "blobs" / "deeper").symlink_to("../secret")
    (snapshot / "link").unlink()
    (snapshot / "link").symlink_to("../../blobs/deeper")
    refused(snapshot, "link", "outside")


def test_blobs_beside_a_folder_that_is_no_snapshot(tmp_path: Path) -> None:
    cache(tmp_path)
    (tmp_path / "models--a--b" / "snapshots").rename(tmp_path / "models--a--b" / "others")
    refused(tmp_path / "models--a--b" / "others" / "abc", "file", "outside")


def test_targets_with_line_breaks_are_told_in_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a\nb").write_text("x")
    (folder / "link").symlink_to("../a\nb")
    refused(folder, "link", "a\\nb")


@given(st.text(max_size=300))
def test_names_in_messages_stay_in_one_line(text: str) -> None:
    for told in (named(text), shown(text)):
        assert told.isprintable() and len(told) <= 200
