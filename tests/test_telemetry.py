"""onnxruntime reports nothing to its makers: it is told so before it is imported, here and in every process of ours."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lfm2export.consumers.workers import run_worker
from lfm2export.pool import Pool

NAME = "ORT_DISABLE_TELEMETRY"

WATCHING = """
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"))
            sys.exit()
sys.meta_path.insert(0, Finder())
"""


def clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != NAME}


@pytest.mark.parametrize("module", ["lfm2export.runtime", "lfm2export.bench.worker", "lfm2export.consumers.asked"])
def test_it_is_set_before_onnxruntime_is_imported(module: str) -> None:
    code = f"{WATCHING}\nimport {module}"
    for stated, expected in (({}, "1"), ({NAME: "0"}, "0")):
        ran = subprocess.run([sys.executable, "-c", code], env=clean() | stated, capture_output=True, text=True)
        assert (ran.stdout, ran.stderr) == (f"{expected}\n", "")


def test_it_is_set_in_workers_of_consumers_and_of_the_pool(tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text("import json, os, sys\nopen(sys.argv[2], 'w').write(json.dumps(dict(os.environ)))")
    (found,), _ = run_worker([sys.executable, worker], {}, timeout=60)
    assert found[NAME] == "1"
    with Pool(1, functools.partial(os.getenv, NAME)) as pool:
        assert pool.run(0) == "1"
