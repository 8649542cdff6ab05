"""ci/release.sh: everything is there and checks out; a failed verdict is exit code 1, and an error ends it at once."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "ci" / "release.sh"

STUB = """#!/usr/bin/env bash
echo "$*" >>"$(dirname "$0")/calls"
case $1 in
build)
  folder=${@: -1}
  mkdir -p "$folder/onnx" "$folder/.cache"
  echo 1 >"$folder/onnx/a b"
  echo 2 >"$folder/.cache/x"
  ;;
verify)
  if [ -z "${CRASH:-}" ]; then echo "<testsuites/>" >"$4"; fi
  exit "$VERDICT"
  ;;
inspect) exit "${INSPECTED:-0}" ;;
esac
"""


def release(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run(["bash", SCRIPT, *arguments], env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    path = tmp_path / "bin" / "lfm2-export"
    path.parent.mkdir()
    path.write_text(STUB)
    path.chmod(0o755)
    return path


def check_sums(out: Path) -> list[str]:
    """Names in sha256sums, each with the right sum."""
    names = []
    for line in (out / "sha256sums").read_text().splitlines():
        digest, name = line.split("  ", 1)
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
        names.append(name)
    return names


@pytest.mark.parametrize("verdict", [0, 1])
def test_verdict_is_the_exit_code(stub: Path, tmp_path: Path, verdict: int) -> None:
    out = tmp_path / "with space"
    done = release(out, LFM2_EXPORT=str(stub), VERDICT=str(verdict), DTYPES="q4 q8", VERIFY="--steps 4")
    assert done.returncode == verdict, done.stderr
    assert check_sums(out) == ["artifact/onnx/a b"]
    assert (out / "junit.xml").is_file()
    built, verified, inspected = (stub.parent / "calls").read_text().splitlines()
    assert built == f"build --dtype=q4 --dtype=q8 --no-verify -o {out}/artifact"
    assert verified.endswith("junit.xml --steps 4") and inspected.startswith("inspect")


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        ({"VERDICT": "2"}, 2),
        ({"VERDICT": "70"}, 70),
        ({"VERDICT": "130"}, 130),
        ({"VERDICT": "1", "CRASH": "1"}, 70),
        ({"VERDICT": "0", "INSPECTED": "2"}, 2),
    ],
)
def test_what_is_no_verdict_ends_it(stub: Path, tmp_path: Path, outcome: dict[str, str], code: int) -> None:
    done = release(tmp_path / "out", LFM2_EXPORT=str(stub), **outcome)
    assert done.returncode == code and "without a verdict" in done.stderr
    assert not (tmp_path / "out" / "sha256sums").exists()


def test_damage_that_inspect_finds_is_a_verdict(stub: Path, tmp_path: Path) -> None:
    done = release(tmp_path / "out", LFM2_EXPORT=str(stub), VERDICT="0", INSPECTED="1")
    assert done.returncode == 1 and "Not fit for release" in done.stderr
    assert check_sums(tmp_path / "out")


def test_an_output_that_cannot_be_made_is_bad_input(stub: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert release(tmp_path / "file" / "out", LFM2_EXPORT=str(stub), VERDICT="0").returncode == 2


def test_options_reach_build(stub: Path, tmp_path: Path) -> None:
    release(
        tmp_path, "a/b", "--", "--revision", "main", "-o", tmp_path / "artifact", LFM2_EXPORT=str(stub), VERDICT="0"
    )
    assert (stub.parent / "calls").read_text().startswith("build a/b --dtype=fp32")


@pytest.mark.parametrize("arguments", [[], ["out", "a", "b"], ["--wrong"]])
def test_bad_usage(arguments: list[str]) -> None:
    done = release(*arguments)
    assert done.returncode == 2 and "ci/release.sh OUT [SOURCE]" in done.stderr


def test_a_tiny_checkpoint_is_released(tiny_source: Path, tmp_path: Path) -> None:
    tool = Path(sys.executable).parent / "lfm2-export"
    done = release(tmp_path / "out", tiny_source, "--", "--quiet", LFM2_EXPORT=str(tool), DTYPES="q4", VERIFY="--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    names = check_sums(tmp_path / "out")
    for name in ("onnx/model_q4.onnx", "build.json", "README.md", "parity.json", "parity.md", "parity.html"):
        assert f"artifact/{name}" in names
    assert json.loads((tmp_path / "out/artifact/parity.json").read_text())["verdict"] == "passed"
    suite = ET.parse(tmp_path / "out" / "junit.xml").getroot().find("testsuite[@name='q4']")
    assert suite is not None and suite.attrib["failures"] == "0" and int(suite.attrib["tests"]) > 5
