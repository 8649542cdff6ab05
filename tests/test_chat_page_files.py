"""Which files the chat page puts beside an artifact, and which it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from lfm2export.consumers import chat_page
from lfm2export.consumers.chat_page import write_chat_page
from lfm2export.consumers.page_files import LIBRARIES, LICENSES, page_files
from lfm2export.errors import BusyError, OutputError
from lfm2export.ownership import check_replaceable
from staged import fill, names
from test_locking import held


@pytest.fixture
def artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artifact, on a machine where the packages of the page are installed."""
    for name in (*LIBRARIES, *LICENSES):
        path = tmp_path / "js" / "node_modules" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("code")
    monkeypatch.setattr(chat_page, "JS", tmp_path / "js")
    monkeypatch.setattr(chat_page, "describe_files", lambda folder: {})  # the model files of this one are none
    fill(tmp_path / "out", "old")
    return tmp_path / "out"


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_page_is_what_the_list_says_and_may_be_replaced(artifact: Path) -> None:
    out = write_chat_page(artifact).folder
    assert files(out) == page_files()
    check_replaceable(artifact)
    (out / "index.html").write_text("edited")
    with pytest.raises(OutputError, match="add --force"):
        write_chat_page(artifact)
    write_chat_page(artifact, force=True)
    assert files(out) == page_files() and (out / "index.html").read_text() != "edited"
    assert [name for name in names(artifact) if name.startswith(".")] == []


def test_force_leaves_what_is_not_of_the_page(artifact: Path) -> None:
    out = write_chat_page(artifact).folder
    (out / "mine.html").write_text("mine")
    with pytest.raises(OutputError, match=r"\(mine\.html\)"):
        write_chat_page(artifact, force=True)
    assert (out / "mine.html").read_text() == "mine"


def test_a_link_in_the_place_of_the_page_is_not_followed(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (artifact / "chat").symlink_to(tmp_path / "mine")
    with pytest.raises(OutputError, match="is a link"):
        write_chat_page(artifact, force=True)
    assert names(tmp_path / "mine") == []


def test_an_artifact_in_use_gets_no_page(artifact: Path) -> None:
    with held(artifact), pytest.raises(BusyError, match="in use by another command"):
        write_chat_page(artifact)
    assert not (artifact / "chat").exists()
