from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from benchmarks.processes import busy_seconds, measure

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc, which only Linux has")

#: Holds 96 MiB of its own memory for half a second.
HOLD = "import time; held = bytearray(b'x') * (96 << 20); time.sleep(0.5); print('held', len(held))"


def test_memory_of_a_process_is_what_it_holds() -> None:
    used = measure([sys.executable, "-c", HOLD])
    assert used.exit_code == 0 and "held 100663296" in used.output
    assert 96 << 20 <= used.peak_anonymous_bytes <= 130 << 20
    assert used.peak_resident_bytes >= used.peak_anonymous_bytes
    assert used.seconds >= 0.5 and 0 < used.busy_cores < 2


def test_a_mapped_file_is_resident_and_not_anonymous(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(64 << 20))
    read = (
        f"import mmap, time; file = open({str(path)!r}, 'rb'); m = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)"
        "; sum(m[i] for i in range(0, len(m), 4096)); time.sleep(0.4)"
    )
    used = measure([sys.executable, "-c", read])
    assert used.peak_resident_bytes >= 64 << 20 > used.peak_anonymous_bytes


def test_children_count_too() -> None:
    used = measure([sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLD!r}])"])
    assert used.peak_anonymous_bytes >= 96 << 20


def test_a_failure_is_a_result_with_its_output() -> None:
    used = measure([sys.executable, "-c", "import sys; print('why', file=sys.stderr); sys.exit(3)"])
    assert used.exit_code == 3 and "why" in used.output


def test_work_makes_the_cores_busy() -> None:
    before, own = busy_seconds(), time.process_time()
    while time.process_time() - own < 0.3:
        pass
    after = busy_seconds()
    assert before is not None and after is not None and after - before >= 0.25
