"""How fast memory can be read: the limit of decode, which reads every weight once a token.

Each thread reads a buffer of its own from end to end; the buffers together are far larger than any cache. Reads are
numpy's vectorized reductions, which hold no lock while they run. Which of them comes nearest to the hardware's limit
differs (two threads of a Zen 4: 25 GB/s by sum, 45 by dot, 56 by max), so two are tried, several times, and the
best counts: a limit is what was reached once.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Bytes of all threads together; several times the last-level cache of a server.
BUFFER_BYTES = 512 << 20
ROUNDS = 5

Array = NDArray[Any]


def usable_cores() -> int:
    """Cores that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return os.cpu_count() or 1


def read_bandwidth(threads: int, buffer_bytes: int = BUFFER_BYTES, rounds: int = ROUNDS) -> float:
    """Bytes a second that `threads` threads read from memory together, the best of `rounds` by either reduction."""
    # Written to, or every page would be the one page of zeros.
    buffers = [np.ones(max(1, buffer_bytes // threads // 8), np.int64) for _ in range(threads)]
    size = sum(buffer.nbytes for buffer in buffers)
    best = min(_seconds(reduction, buffers) for _ in range(rounds) for reduction in (_highest, _or))
    return size / best


def _highest(buffer: Array) -> None:
    buffer.view(np.float32).max()


def _or(buffer: Array) -> None:
    np.bitwise_or.reduce(buffer)


def _seconds(read: Callable[[Array], None], buffers: list[Array]) -> float:
    """Wall time of `read` on every buffer at once, a thread each."""
    gate = threading.Barrier(len(buffers) + 1)

    def work(buffer: Array) -> None:
        gate.wait()
        read(buffer)
        gate.wait()

    workers = [threading.Thread(target=work, args=(buffer,), daemon=True) for buffer in buffers]
    for worker in workers:
        worker.start()
    gate.wait()
    begin = time.perf_counter()
    gate.wait()
    elapsed = time.perf_counter() - begin
    for worker in workers:
        worker.join()
    return elapsed
