"""One command at a time writes into a folder, and a process that ends frees it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lfm2export import locking
from lfm2export.errors import BusyError
from lfm2export.locking import lock, locked
from staged import names

HOLDER = """
import sys, time
from pathlib import Path
from lfm2export.locking import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of `folder`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None and child.stdout.readline() == "held\n"
        yield child
        child.send_signal(signal.SIGKILL)


def test_another_process_is_refused_until_the_first_ends_and_nothing_is_left(tmp_path: Path) -> None:
    with held(tmp_path):
        with pytest.raises(BusyError, match="in use by another command") as caught, locked(tmp_path):
            raise AssertionError("the block must not run")
        assert "\n" not in str(caught.value)
        link = tmp_path.with_name("link to it")
        link.symlink_to(tmp_path)
        with pytest.raises(BusyError), locked(link):
            raise AssertionError("the block must not run")
    with locked(tmp_path):
        assert names(tmp_path) == []


def test_a_folder_that_may_only_be_read_is_locked_too(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with locked(tmp_path), pytest.raises(BusyError), locked(tmp_path):
        raise AssertionError("the block must not run")


def test_the_lock_is_on_the_folder_that_is_there_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build may put another folder in the place between opening it and locking it."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    opened = []
    real = os.open

    def late(path: Path, flags: int) -> int:
        descriptor = real(path, flags)
        if not opened:
            (tmp_path / "a").rename(tmp_path / "old")
            (tmp_path / "b").rename(tmp_path / "a")
        opened.append(descriptor)
        return descriptor

    monkeypatch.setattr(locking.os, "open", late)
    descriptor = lock(tmp_path / "a")
    assert descriptor is not None and len(opened) == 2
    assert os.path.samestat(os.fstat(descriptor), (tmp_path / "a").stat())
    os.close(descriptor)


def test_what_killed_writes_left_goes_under_the_lock_only(tmp_path: Path) -> None:
    (tmp_path / ".parity.json.0123abcd.lfm2export.partial").touch()
    with locked(tmp_path):
        assert names(tmp_path) == []


def test_a_folder_that_is_not_there_is_left_to_the_command(tmp_path: Path) -> None:
    ran = False
    with locked(tmp_path / "none"):
        ran = True
    assert ran
