"""`build` with its verification, where that fails: exit code 1. The good case is in test_current_folder.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import run
from lfm2export.verify import tolerances


def test_a_build_that_fails_its_verification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tolerances, "EXACT_PER_LAYER", 1e-12)  # float32 cannot be that near
    ran = run("build", "-o", "out", "--quiet", cwd=tmp_path)
    assert ran.code == 1
    assert "parity failed: the new artifact is kept as PLACE/out.failed" in ran.stdout
    assert "q4     failed  model_q4.onnx" in ran.stdout and "expected at most" in ran.stderr
    assert (tmp_path / "out.failed" / "parity.html").is_file() and not (tmp_path / "out").exists()
