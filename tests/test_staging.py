"""The output folder is the old one or the new one, whole, whatever happens in between."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lfm2export import staging
from lfm2export.errors import ArtifactError, BusyError, OutputError
from lfm2export.staging import staged_output
from staged import fill, marks, names


def test_a_new_folder_appears_at_the_end_only(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staged_output(out, force=False) as staged:
        fill(staged.folder, "new")
        assert not out.exists()
        assert staged.folder.parent == tmp_path / ".out.lfm2export.partial"
    assert marks(out) == {"new"} and names(tmp_path) == ["out"]


@pytest.mark.parametrize("exchange", [True, False])
def test_force_replaces_an_artifact(tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    fill(out, "old")
    (out / "parity.md").write_text("old")
    if not exchange:
        monkeypatch.setattr(staging, "exchange", lambda first, second: False)
    with staged_output(out, force=True) as staged:
        fill(staged.folder, "new")
        assert marks(out) == {"old"}
    assert marks(out) == {"new"} and names(tmp_path) == ["out"]


@pytest.mark.parametrize("failure", [RuntimeError("no"), KeyboardInterrupt(), SystemExit(3)])
def test_a_failure_leaves_everything_as_it_was(tmp_path: Path, failure: BaseException) -> None:
    out = tmp_path / "out"
    fill(out, "old")
    with pytest.raises(type(failure)), staged_output(out, force=True) as staged:
        fill(staged.folder, "new")
        raise failure
    assert marks(out) == {"old"} and names(tmp_path) == ["out"]


def test_missing_parents_are_made_and_taken_back(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "out"
    with pytest.raises(RuntimeError), staged_output(out, force=False):
        raise RuntimeError
    assert names(tmp_path) == []
    with staged_output(out, force=False) as staged:
        fill(staged.folder, "new")
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
    assert ".git/" in refused(checkout)
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
    with staged_output(tmp_path / "out", force=True) as staged:
        fill(staged.folder, "new")
    assert marks(tmp_path / "out") == {"new"}


def test_a_link_is_followed(tmp_path: Path) -> None:
    fill(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with staged_output(tmp_path / "link", force=True) as staged:
        fill(staged.folder, "new")
    assert marks(tmp_path / "real") == {"new"} and (tmp_path / "link").is_symlink()


def test_a_closed_parent_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    if os.geteuid() == 0:  # root may write everywhere: let the system answer as it answers others
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != closed)
    assert "not writable" in refused(closed / "out")


@pytest.mark.parametrize("inner", [".", "onnx"])
def test_what_could_not_be_removed_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inner: str) -> None:
    out = tmp_path / "out"
    fill(out, "old")
    (out / inner).chmod(0o555)
    if os.geteuid() == 0:
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != out / inner)
    assert f"{out / inner} is not writable" in refused(out)
    (out / inner).chmod(0o755)


@pytest.mark.parametrize("exchange", [True, False])
def test_what_is_left_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    """Now, and by the next build, which does not begin."""
    out = tmp_path / "out"
    fill(out, "old")
    if not exchange:
        monkeypatch.setattr(staging, "exchange", lambda one, other: False)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path, ignore_errors: None)  # as where the disk refuses
        with staged_output(out, force=True) as staged:
            fill(staged.folder, "new")
        assert staged.left is not None and marks(staged.left) == {"old"} and marks(out) == {"new"}
        with (
            pytest.raises(OutputError, match=f"{staged.left} is left of an earlier build"),
            staged_output(out, force=True),
        ):
            raise AssertionError("the block must not run")
    with staged_output(out, force=True) as staged:
        fill(staged.folder, "newer")
    assert staged.left is None and names(tmp_path) == ["out"] and marks(out) == {"newer"}


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    assert "not UTF-8; choose another output" in refused(tmp_path / os.fsdecode(b"out\xff"))
    parent = tmp_path / os.fsdecode(b"\xff")
    parent.mkdir()
    assert "not UTF-8; choose another output" in refused(parent / "out")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_or_closed_disk_is_one_line(tmp_path: Path, number: int) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputError, match="cannot write") as caught, staged_output(out, force=False):
        raise OSError(number, os.strerror(number))
    assert "\n" not in str(caught.value) and names(tmp_path) == []


def test_a_really_full_disk(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(OutputError, match="no space left"), staged_output(tmp_path / "out", force=False) as staged:
        (staged.folder / "data").symlink_to("/dev/full")
        (staged.folder / "data").write_bytes(b"x" * 100_000)
    assert names(tmp_path) == []


def test_errors_about_other_files_are_left_alone(tmp_path: Path) -> None:
    for failure in (FileNotFoundError(2, "gone", "/elsewhere/x"), PermissionError(13, "closed", "/elsewhere/x")):
        with pytest.raises(type(failure)), staged_output(tmp_path / "out", force=False):
            raise failure
    with (
        pytest.raises(OutputError, match="permission"),
        staged_output(tmp_path / "out", force=False) as staged,
    ):
        raise PermissionError(errno.EACCES, "closed", str(staged.folder / "onnx" / "model.onnx"))


def test_leftovers_of_dead_builds_go_and_a_live_one_is_alone(tmp_path: Path) -> None:
    out, dead = tmp_path / "out", tmp_path / ".out.lfm2export.partial"
    (dead / "onnx").mkdir(parents=True)
    (dead / "half").touch()
    (dead / "onnx" / "link").symlink_to(tmp_path / "mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    others = [tmp_path / ".other.lfm2export.partial", tmp_path / ".out.notes.partial"]
    for other in others:
        other.mkdir()
    with staged_output(out, force=True) as live:
        assert names(dead) == [live.folder.name] and names(live.folder) == []
        fill(live.folder, "first")
        for _ in range(2):
            with pytest.raises(BusyError, match="another build into"), staged_output(out, force=True):
                raise AssertionError("the block must not run")
        assert marks(live.folder) == {"first"}
    assert marks(out) == {"first"}
    assert names(tmp_path) == sorted([*(other.name for other in others), "mine", "out"])
    assert names(tmp_path / "mine") == ["notes"]


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_stands_where_a_build_would_write_is_left_alone(kind: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    place = tmp_path / ".out.lfm2export.partial"
    place.touch() if kind == "file" else place.symlink_to(tmp_path / "mine")
    assert "in the way" in refused(tmp_path / "out")
    assert (tmp_path / "mine" / "notes").exists() and os.path.lexists(place)


def test_where_folders_cannot_be_locked_builds_run_beside_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "lock", lambda folder: None)
    (tmp_path / ".out.lfm2export.partial").mkdir()
    with staged_output(tmp_path / "out", force=True) as first:
        fill(first.folder, "first")
        with staged_output(tmp_path / "out", force=True) as second:
            fill(second.folder, "second")
        assert marks(tmp_path / "out") == {"second"}
    assert marks(tmp_path / "out") == {"first"} and names(tmp_path) == ["out"]


def test_a_folder_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="already exists"), staged_output(tmp_path / "out", force=False) as staged:
        fill(staged.folder, "mine")
        fill(tmp_path / "out", "theirs")
    assert names(tmp_path) == ["out"] and marks(tmp_path / "out") == {"theirs"}


def test_a_kill_between_two_renames_is_undone(tmp_path: Path) -> None:
    fill(tmp_path / ".out.lfm2export.old", "old")
    with pytest.raises(RuntimeError), staged_output(tmp_path / "out", force=True):
        assert marks(tmp_path / "out") == {"old"}
        raise RuntimeError
    assert marks(tmp_path / "out") == {"old"}


def test_a_folder_that_its_check_refused_is_kept_beside_the_old_one(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    for mark in ("first", "second"):  # the second takes the place of the first
        with staged_output(out, force=True) as staged:
            fill(staged.folder, mark)
            staged.reject()
        assert staged.place == tmp_path / "new" / "out.failed"
        assert names(out.parent) == ["out.failed"] and marks(staged.place) == {mark}
    with staged_output(out, force=True) as staged:
        fill(staged.folder, "good")
    with staged_output(out, force=True) as staged:
        fill(staged.folder, "third")
        staged.reject()
    assert names(out.parent) == ["out", "out.failed"]
    assert marks(out) == {"good"} and marks(tmp_path / "new" / "out.failed") == {"third"}


def test_somebodys_own_folder_called_failed_stays(tmp_path: Path) -> None:
    fill(tmp_path / "out.failed", "theirs")
    (tmp_path / "out.failed" / "notes.txt").write_text("theirs")
    (tmp_path / "out.failed.2").touch()
    (tmp_path / "out.failed.3").symlink_to(tmp_path / "out.failed")
    for mark in ("first", "second"):
        with staged_output(tmp_path / "out", force=False) as staged:
            fill(staged.folder, mark)
            staged.reject()
        assert staged.place == tmp_path / "out.failed.4" and marks(staged.place) == {mark}
    assert marks(tmp_path / "out.failed") == {"theirs"}
    assert names(tmp_path) == ["out.failed", "out.failed.2", "out.failed.3", "out.failed.4"]


@pytest.mark.parametrize("exchanged", [True, False])
def test_a_file_that_appears_at_the_last_moment_is_not_lost(
    exchanged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    fill(out, "old")
    real = staging.exchange

    def late(first: Path, second: Path) -> bool:
        (out / "notes.txt").write_text("old")
        return exchanged and real(first, second)

    monkeypatch.setattr(staging, "exchange", late)
    with pytest.raises(OutputError, match=r"notes\.txt"), staged_output(out, force=True) as staged:
        fill(staged.folder, "new")
    assert marks(out) == {"old"} and (out / "notes.txt").exists() and names(tmp_path) == ["out"]


def test_edited_files_that_were_replaced_are_named(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out, "old")
    (out / "README.md").write_text("mine")
    with staged_output(out, force=True) as staged:
        fill(staged.folder, "new")
    assert staged.edited == ("README.md",)
    with staged_output(out, force=True) as staged:
        fill(staged.folder, "newer")
    assert staged.edited == () and marks(out) == {"newer"}


def test_errors_name_the_output_and_not_where_it_was_made(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as caught, staged_output(tmp_path / "out", force=False) as staged:
        raise ArtifactError(f"{staged.folder}/onnx/model.onnx does not load")
    assert str(caught.value) == f"{tmp_path}/out/onnx/model.onnx does not load"


def test_every_file_is_on_the_disk_before_the_old_folder_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    fill(out, "old")
    flushed: set[int] = set()
    real, swap = os.fsync, staging.exchange

    def record(descriptor: int) -> None:
        real(descriptor)
        flushed.add(os.fstat(descriptor).st_ino)

    def exchange(first: Path, second: Path) -> bool:
        missing = [path for path in [first, *first.rglob("*")] if path.stat().st_ino not in flushed]
        assert missing == []
        return swap(first, second)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(staging, "exchange", exchange)
    with staged_output(out, force=True) as staged:
        fill(staged.folder, "new")
        with (staged.folder / "onnx" / "model.onnx_data_1").open("wb") as file:
            file.truncate(20 << 20)
    assert (out / "onnx" / "model.onnx_data_1").exists()
    assert out.parent.stat().st_ino in flushed, "the rename itself"


def test_a_disk_that_does_not_take_a_file_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    fill(out, "old")

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with (
        pytest.raises(OutputError, match=r"cannot write .*input/output error"),
        staged_output(out, force=True) as staged,
    ):
        fill(staged.folder, "new")
    assert marks(out) == {"old"} and names(tmp_path) == ["out"]


CHILD = """
import sys
from pathlib import Path
from lfm2export.staging import staged_output
from staged import fill
out = Path(sys.argv[1])
for count in range(1_000_000):
    with staged_output(out, force=True) as staged:
        fill(staged.folder, f"{sys.argv[2]} {count}")
        if count % 3 == 2:  # what a check does, and refuses
            (staged.folder / "parity.md").write_text(f"{sys.argv[2]} {count}")
            staged.reject()
    if count == 3:
        print("ready", flush=True)
"""


@pytest.mark.parametrize("exchange", [True, False])
def test_kills_at_random_moments_leave_whole_folders(exchange: bool, tmp_path: Path) -> None:
    out, failed = tmp_path / "out", tmp_path / "out.failed"
    code = CHILD if exchange else "from lfm2export import staging; staging.exchange = lambda a, b: False" + CHILD
    dice = random.Random(7)
    for attempt in range(8):
        command = [sys.executable, "-c", code, str(out), str(attempt)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
            time.sleep(dice.uniform(0, 0.05))
            child.send_signal(signal.SIGKILL)
        for place, passed in ((out, True), (failed, False)):
            kept = place
            if not exchange and not place.exists():  # between two renames
                kept = tmp_path / f".{place.name}.lfm2export.old"
            [found] = marks(kept)
            assert found.split()[0] == str(attempt) and (int(found.split()[1]) % 3 != 2) == passed
            assert len(list(kept.rglob("*"))) == (6 if passed else 7)
    with staged_output(out, force=True) as staged:
        fill(staged.folder, "last")
    assert names(tmp_path) == ["out", "out.failed"] and marks(out) == {"last"} and len(marks(failed)) == 1
