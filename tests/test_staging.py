"""The output folder is the old one or the new one, whole, whatever happens in between."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lfm2export import staging
from lfm2export.errors import OutputError
from lfm2export.staging import staged_output


def fill(folder: Path, mark: str) -> None:
    """An artifact of which every file says `mark`."""
    (folder / "onnx").mkdir(parents=True)
    for name in ("build.json", "config.json", "onnx/model.onnx", "onnx/model.onnx_data"):
        (folder / name).write_text(mark)


def marks(folder: Path) -> set[str]:
    return {path.read_text() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_folder_appears_at_the_end_only(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staged_output(out, force=False) as folder:
        fill(folder, "new")
        assert not out.exists()
        assert folder.parent == tmp_path and folder.name.startswith(".out.") and folder.name.endswith(".partial")
    assert marks(out) == {"new"} and names(tmp_path) == ["out"]


@pytest.mark.parametrize("exchange", [True, False])
def test_force_replaces_an_artifact(tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    fill(out, "old")
    (out / "stray").write_text("old")
    if not exchange:
        monkeypatch.setattr(staging, "_exchange", lambda first, second: False)
    with staged_output(out, force=True) as folder:
        fill(folder, "new")
        assert marks(out) == {"old"}
    assert marks(out) == {"new"} and names(tmp_path) == ["out"]


def test_the_exchange_is_what_linux_uses(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("renameat2 is Linux")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "first").touch()
    assert staging._exchange(tmp_path / "a", tmp_path / "b")
    assert names(tmp_path / "b") == ["first"]
    assert not staging._exchange(tmp_path / "a", tmp_path / "missing")


@pytest.mark.parametrize("failure", [RuntimeError("no"), KeyboardInterrupt(), SystemExit(3)])
def test_a_failure_leaves_everything_as_it_was(tmp_path: Path, failure: BaseException) -> None:
    out = tmp_path / "out"
    fill(out, "old")
    with pytest.raises(type(failure)), staged_output(out, force=True) as folder:
        fill(folder, "new")
        raise failure
    assert marks(out) == {"old"} and names(tmp_path) == ["out"]


def test_missing_parents_are_made_and_taken_back(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "out"
    with pytest.raises(RuntimeError), staged_output(out, force=False):
        raise RuntimeError
    assert names(tmp_path) == []
    with staged_output(out, force=False) as folder:
        fill(folder, "new")
    assert marks(out) == {"new"}


def refused(out: Path, *, force: bool = True, source: Path | None = None) -> str:
    before = sorted(out.parent.rglob("*")) if out.parent.is_dir() else []
    with pytest.raises(OutputError) as caught, staged_output(out, force=force, source=source):
        raise AssertionError("the block must not run")
    assert "\n" not in str(caught.value)
    assert before == (sorted(out.parent.rglob("*")) if out.parent.is_dir() else [])
    return str(caught.value)


def test_what_is_refused_before_any_work(tmp_path: Path) -> None:
    artifact, home, empty, file, checkout = (tmp_path / name for name in ("artifact", "home", "empty", "file", "git"))
    fill(artifact, "old")
    home.mkdir()
    (home / "letters.txt").touch()
    (home / "onnx").mkdir()
    empty.mkdir()
    file.touch()
    fill(checkout, "old")
    (checkout / ".git").mkdir()
    assert "already exists" in refused(artifact, force=False)
    assert "already exists" in refused(empty, force=False)
    assert "not a folder" in refused(file)
    assert "neither empty nor an artifact" in refused(home)
    assert "git checkout" in refused(checkout)
    assert "is a file" in refused(file / "out")
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    assert "inside the source" in refused(source / "out", source=source)
    assert "the source folder itself" in refused(source, source=source)
    assert "inside the output" in refused(source, source=source / "inner")
    link = tmp_path / "link"
    link.symlink_to(source)
    assert "inside the source" in refused(link / "out", source=source)


def test_names_that_cannot_be(tmp_path: Path) -> None:
    assert "file name too long" in refused(tmp_path / ("x" * 300))
    assert "file name too long" in refused(tmp_path / ("x" * 250)), "the staging folder's name is longer"
    with pytest.raises(OutputError, match="cannot create"), staged_output(Path("/proc/out"), force=False):
        raise AssertionError("the block must not run")


def test_an_empty_folder_is_replaced_with_force(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with staged_output(tmp_path / "out", force=True) as folder:
        fill(folder, "new")
    assert marks(tmp_path / "out") == {"new"}


def test_a_link_is_followed(tmp_path: Path) -> None:
    fill(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with staged_output(tmp_path / "link", force=True) as folder:
        fill(folder, "new")
    assert marks(tmp_path / "real") == {"new"} and (tmp_path / "link").is_symlink()


def test_a_closed_parent_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    if os.geteuid() == 0:  # root may write everywhere: let the system answer as it answers others
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != closed)
    assert "not writable" in refused(closed / "out")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_or_closed_disk_is_one_line(tmp_path: Path, number: int) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputError, match="cannot write") as caught, staged_output(out, force=False):
        raise OSError(number, os.strerror(number))
    assert "\n" not in str(caught.value) and names(tmp_path) == []


def test_a_really_full_disk(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(OutputError, match="no space left"), staged_output(tmp_path / "out", force=False) as folder:
        (folder / "data").symlink_to("/dev/full")
        (folder / "data").write_bytes(b"x" * 100_000)
    assert names(tmp_path) == []


def test_errors_about_other_files_are_left_alone(tmp_path: Path) -> None:
    for failure in (FileNotFoundError(2, "gone", "/elsewhere/x"), PermissionError(13, "closed", "/elsewhere/x")):
        with pytest.raises(type(failure)), staged_output(tmp_path / "out", force=False):
            raise failure
    with (
        pytest.raises(OutputError, match="permission"),
        staged_output(tmp_path / "out", force=False) as folder,
    ):
        raise PermissionError(errno.EACCES, "closed", str(folder / "onnx" / "model.onnx"))


def test_leftovers_of_dead_builds_go_and_those_of_live_ones_stay(tmp_path: Path) -> None:
    dead = tmp_path / ".out.0123abcd.partial"
    dead.mkdir()
    (dead / "half").touch()
    others = [tmp_path / ".other.0123abcd.partial", tmp_path / ".out.notes.partial"]
    for other in others:
        other.mkdir()
    with staged_output(tmp_path / "out", force=True) as live:
        assert not dead.exists()
        fill(live, "first")
        with staged_output(tmp_path / "out", force=True) as second:
            assert live.exists()
            fill(second, "second")
        assert marks(tmp_path / "out") == {"second"}
    assert marks(tmp_path / "out") == {"first"}
    assert all(other.exists() for other in others)


def test_a_folder_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="already exists"), staged_output(tmp_path / "out", force=False) as folder:
        fill(folder, "mine")
        fill(tmp_path / "out", "theirs")
    assert names(tmp_path) == ["out"] and marks(tmp_path / "out") == {"theirs"}


def test_a_kill_between_two_renames_is_undone(tmp_path: Path) -> None:
    fill(tmp_path / ".out.0123abcd.old", "old")
    with pytest.raises(RuntimeError), staged_output(tmp_path / "out", force=True):
        assert marks(tmp_path / "out") == {"old"}
        raise RuntimeError
    assert marks(tmp_path / "out") == {"old"}


CHILD = """
import sys
from pathlib import Path
from lfm2export.staging import staged_output
out = Path(sys.argv[1])
for count in range(1_000_000):
    with staged_output(out, force=True) as folder:
        (folder / "onnx").mkdir()
        for name in ("build.json", "config.json", "onnx/model.onnx", "onnx/model.onnx_data"):
            (folder / name).write_text(f"{sys.argv[2]} {count}")
    if count == 0:
        print("ready", flush=True)
"""


def test_kills_at_random_moments_leave_a_whole_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    dice = random.Random(7)
    for attempt in range(12):
        command = [sys.executable, "-c", CHILD, str(out), str(attempt)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
            time.sleep(dice.uniform(0, 0.05))
            child.send_signal(signal.SIGKILL)
        found = marks(out)
        assert len(found) == 1 and found.pop().split()[0] == str(attempt)
        assert len(list(out.rglob("*"))) == 5
    with staged_output(out, force=True) as folder:
        fill(folder, "last")
    assert names(tmp_path) == ["out"] and marks(out) == {"last"}
