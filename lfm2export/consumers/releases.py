"""Which releases of onnxruntime run an artifact: the model card's loop on each, in an environment that is thrown away.

    python -m lfm2export.consumers.releases ARTIFACT 1.22.0 1.32.0

prints the table of verdicts. Everything but onnxruntime (and numpy, for releases built against numpy 1) is this
environment's own.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lfm2export.artifact import available_models
from lfm2export.consumers.asked import Asked
from lfm2export.consumers.card_loop import run_release
from lfm2export.consumers.result import ConsumerReport, ConsumerResult

#: The first release that was built against numpy 2.
FIRST_WITH_NUMPY_2 = (1, 19)


def check_releases(folder: Path, versions: Sequence[str]) -> Iterator[list[ConsumerResult]]:
    """The results of every file on each release."""
    asked = {dtype: Asked(folder, dtype) for dtype in available_models(folder)}
    for version in versions:
        with tempfile.TemporaryDirectory(prefix="lfm2export-release-") as scratch:
            python = environment(Path(scratch), version)
            yield run_release(python, folder, asked) if python is not None else _not_run(asked, version)


def environment(folder: Path, version: str) -> Path | None:
    """Python of a new environment with onnxruntime `version` in front of this environment's packages; None: no such."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    numpy = ["numpy<2"] if tuple(map(int, version.split(".")[:2])) < FIRST_WITH_NUMPY_2 else ["numpy>=2"]
    command = [str(python), "-P", "-m", "pip", "install", "--quiet", f"onnxruntime=={version}", *numpy]
    if subprocess.run(command, capture_output=True).returncode != 0:
        return None
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "zz_lfm2export.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return python


def _not_run(asked: Mapping[str, Asked], version: str) -> list[ConsumerResult]:
    reason = "pip does not find it for this Python"
    return [ConsumerResult.not_run("onnxruntime/card", dtype, "cpu", reason, version) for dtype in asked]


def main() -> None:
    folder, *versions = sys.argv[1:]
    results = [result for found in check_releases(Path(folder), versions) for result in found]
    print(ConsumerReport(folder, tuple(results)).to_markdown())


if __name__ == "__main__":
    main()
