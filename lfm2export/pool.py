"""Numbered pieces of work in processes of their own, because threads that run numpy wait for each other.

Its loops over a piece in cache take 50 microseconds, and after each one a thread asks for the interpreter's lock, which
another may hold: two threads changed places 100,000 times while they quantized 350 M weights, and kept 1.4 of 2 cores
busy; two processes keep 1.8 busy.

A job is any picklable callable of a number. Workers get it once, then a number at a time, over pipes; they import
nothing but what the job needs, end when their parent does, and leave Ctrl-C and SIGTERM to it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

from lfm2export.errors import Lfm2ExportError

Job = Callable[[int], Any]

#: A job that needs threads of its own would slow the others down; numpy's matrix products start them.
ONE_THREAD = {name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}


class Pool:
    """`count` worker processes. :meth:`run` may be called from any number of threads.

    with Pool(2, job) as pool:
        results = [pool.run(number) for number in range(9)]     # from two threads, to keep both busy
    """

    def __init__(self, count: int, job: Job) -> None:
        self.idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self.workers = [_Worker(job) for _ in range(count)]
        for worker in self.workers:
            self.idle.put(worker)

    def run(self, number: int) -> Any:
        """``job(number)``, in whichever worker is free; what it raises is raised here.

        Raises:
            Lfm2ExportError: the worker ended, as one does that the system kills for memory.
        """
        worker = self.idle.get()
        try:
            return worker.ask(number)
        finally:
            self.idle.put(worker)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        """A piece that is being worked on is finished first."""
        for worker in self.workers:
            worker.close()


class _Worker:
    def __init__(self, job: Job) -> None:
        environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "lfm2export.pool"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.to, self.back = self.process.stdin, self.process.stdout
        self._send(job)

    def _send(self, value: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # the answer that does not come says so
            pickle.dump(value, self.to, protocol=pickle.HIGHEST_PROTOCOL)
            self.to.flush()

    def ask(self, number: int) -> Any:
        self._send(number)
        try:
            answer = pickle.load(self.back)
        except EOFError:
            code = self.process.wait()
            raise Lfm2ExportError(
                f"a worker process ended with {code}; if the system stopped it for memory, use fewer --threads"
            ) from None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.to.close()
        self.process.wait()
        self.back.close()


def work(numbers: BinaryIO, answers: BinaryIO) -> None:
    """A worker's life: the job, then numbers until the parent closes the pipe."""
    with contextlib.suppress(EOFError, BrokenPipeError):
        job: Job = pickle.load(numbers)
        while True:
            number = pickle.load(numbers)
            try:
                answer = job(number)
            except Exception as error:
                answer = error
            pickle.dump(answer, answers, protocol=pickle.HIGHEST_PROTOCOL)
            answers.flush()


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # whoever sends it to a whole group, means the parent
        signal.signal(number, signal.SIG_IGN)
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the answers
    work(sys.stdin.buffer, channel)
