"""Worker processes: answers, errors, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from lfm2export import writer
from lfm2export.errors import Lfm2ExportError, TensorError
from lfm2export.pool import Pool
from lfm2export.weights import BlockFormat, QuantizedBlocks
from lfm2export.writer import write_model
from weight_recipes import Matrix, every_kind, model_of, small_pieces


@dataclass(frozen=True)
class Square:
    """A job: prints, squares, and fails at 7 and 13."""

    offset: int

    def __call__(self, number: int) -> int:
        print("noise on stdout")
        if number == 7:
            raise TensorError("seven")
        if number == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.offset + number * number


def test_answers_come_back_whoever_asks() -> None:
    with Pool(2, Square(1)) as pool, ThreadPoolExecutor(4) as threads:
        assert list(threads.map(pool.run, range(7))) == [1 + number * number for number in range(7)]


def test_an_error_is_raised_here_and_the_worker_goes_on() -> None:
    with Pool(1, Square(0)) as pool:
        with pytest.raises(TensorError, match="seven"):
            pool.run(7)
        assert pool.run(3) == 9


def test_a_worker_that_was_killed_is_an_error_with_advice() -> None:
    with Pool(1, Square(0)) as pool, pytest.raises(Lfm2ExportError, match=r"ended with -9.*--threads"):
        pool.run(13)


def test_workers_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    parent = textwrap.dedent(f"""
        import sys, time
        sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
        from test_pool import Square
        from lfm2export.pool import Pool
        pool = Pool(2, Square(0))
        pool.run(1), pool.run(2)
        print(*[worker.process.pid for worker in pool.workers], flush=True)
        time.sleep(60)
    """)
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 20
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in pids)


def _alive(pid: int) -> bool:
    """Whether it runs; one that has ended and was not waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@dataclass(frozen=True)
class Plain:
    """A checkpoint in memory that can be sent to a process."""

    tensors: dict[str, Matrix]

    def rows(self, name: str, start: int, stop: int) -> Matrix:
        return self.tensors[name][start:stop].copy()

    def prepared(self, name: str, start: int, stop: int, format: BlockFormat) -> QuantizedBlocks | None:
        return None


def test_bytes_do_not_depend_on_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_pieces(monkeypatch, 700)
    source, recipes, _ = every_kind()
    found = []
    for few in (1 << 60, 1):
        monkeypatch.setattr(writer, "FEW", few)
        folder = tmp_path / str(few)
        folder.mkdir()
        written = write_model(model_of(recipes), Plain(source.tensors), folder / "m.onnx", threads=2)
        found.append(([file.sha256 for file in written.files], (folder / "m.onnx_data").read_bytes()))
    assert found[0] == found[1]


def test_a_bad_weight_in_a_process_is_the_same_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_pieces(monkeypatch, 700)
    monkeypatch.setattr(writer, "FEW", 1)
    source, recipes, _ = every_kind()
    source.tensors["b"][3, 3] = float("nan")
    with pytest.raises(TensorError, match="NaN"):
        write_model(model_of(recipes), Plain(source.tensors), tmp_path / "m.onnx", threads=2)
