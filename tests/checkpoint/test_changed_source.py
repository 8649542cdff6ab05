"""A checkpoint that changes after its headers were read: one line, whoever reads next, never a mixture."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from damage import TABLE
from lfm2export.checkpoint import Checkpoint, open_checkpoint, values
from lfm2export.checkpoint.values import StoredTensor
from lfm2export.errors import SourceError
from lfm2export.pipeline import BuildReport, build

READS: dict[str, Callable[[Checkpoint], object]] = {
    "rows": lambda checkpoint: checkpoint.rows(TABLE, 0, 3),
    "columns": lambda checkpoint: checkpoint.columns(TABLE, 0, 3),
    "hash": lambda checkpoint: checkpoint.hash_files(),
    "check": lambda checkpoint: checkpoint.check_unchanged(),
}


def append(path: Path) -> None:
    with path.open("ab") as out:
        out.write(b"more")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 4)


def replace(path: Path) -> None:
    """Another file of the same bytes and time takes its place."""
    copy = path.with_suffix(".new")
    copy.write_bytes(path.read_bytes())
    stamp = path.stat()
    os.utime(copy, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    copy.replace(path)


def overwrite(path: Path) -> None:
    stamp = path.stat()
    with path.open("r+b") as out:
        out.seek(-2, os.SEEK_END)
        out.write(b"\1\2")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))


CHANGES = {
    append: "expected the",
    cut: "expected the",
    replace: "is another file than was opened",
    overwrite: "was written to after it was opened",
}


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_changed_between_two_reads(tiny: Path, change: Callable[[Path], None], read: str) -> None:
    checkpoint = open_checkpoint(tiny)
    READS[read](checkpoint)
    change(tiny / "model.safetensors")
    with pytest.raises(SourceError) as caught:
        READS[read](checkpoint)
    message = str(caught.value)
    assert message.startswith(f"{tiny / 'model.safetensors'} changed while it was read: it ")
    assert CHANGES[change] in message and message.endswith("; do not change it during a build, and start again")


def test_a_file_written_to_in_the_middle_of_a_read(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(tiny)
    plain = values._read

    def read(file: object, tensor: StoredTensor, out: object) -> None:
        plain(file, tensor, out)  # type: ignore[arg-type]
        overwrite(tensor.file)

    monkeypatch.setattr(values, "_read", read)
    with pytest.raises(SourceError, match="was written to after it was opened"):
        checkpoint.rows(TABLE, 0, 3)


def test_a_file_that_is_touched_by_nobody_but_readers(tiny: Path) -> None:
    checkpoint = open_checkpoint(tiny)
    assert checkpoint.hash_files() == checkpoint.hash_files()
    checkpoint.rows(TABLE, 0, 3)


def test_a_check_that_saw_other_weights_says_nothing_of_the_artifact(tiny: Path, tmp_path: Path) -> None:
    def check(folder: Path, report: BuildReport) -> bool:
        append(tiny / "model.safetensors")
        return False

    with pytest.raises(SourceError, match="changed while it was read"):
        build(str(tiny), out=tmp_path / "out", check=check)
    assert not list(tmp_path.glob("*out*"))
