"""The runtimes that an artifact is made for, run on it: the model card's onnxruntime loop, Transformers.js in Node and
in a browser, onnxruntime-genai, OpenVINO.

Each is compared with the Python loop on the same file (`reference.py` says what equal means). A consumer that is not
installed is reported as not run, with what to do; `setup.sh` beside this file installs all of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lfm2export.atomic import write_atomically
from lfm2export.consumers.locate import places
from lfm2export.consumers.result import Check, ConsumerReport, ConsumerResult, Verdict
from lfm2export.errors import Lfm2ExportError, OutputError
from lfm2export.progress import Progress, silent

if TYPE_CHECKING:
    from lfm2export.consumers.asked import Asked

__all__ = [
    "CONSUMERS",
    "Check",
    "ConsumerReport",
    "ConsumerResult",
    "Verdict",
    "check_consumers",
    "run_check_consumers",
]

#: The names that the command line knows.
CONSUMERS = ("onnxruntime", "node", "browser", "node-webgpu", "genai", "openvino")

#: What `run_check_consumers` writes into the folder.
FILE = "consumers.json"


def check_consumers(
    folder: Path,
    *,
    dtypes: Sequence[str] = (),
    consumers: Sequence[str] = (),
    progress: Progress = silent,
) -> ConsumerReport:
    """Run the installed ones of `consumers` (default: all) on the files of `dtypes` (default: all that are there).

    Raises:
        ArtifactError: no such folder or file, or one that is not LFM2's.
        Lfm2ExportError: an unknown consumer.
    """
    from lfm2export.artifact import available_models, find_model
    from lfm2export.consumers.asked import Asked

    unknown = [name for name in consumers if name not in CONSUMERS]
    if unknown:
        raise Lfm2ExportError(f"consumer is {unknown[0]!r}, expected one or more of {', '.join(CONSUMERS)}")
    find_model(folder, dtypes[0] if dtypes else None)
    asked = {dtype: Asked(folder, dtype) for dtype in dtypes or available_models(folder)}
    chosen = [name for name in CONSUMERS if not consumers or name in consumers]
    results: list[ConsumerResult] = []
    for done, name in enumerate(chosen):
        progress(f"consumer {name}", done, len(chosen), "consumers")
        results += _RUNNERS[name](folder, asked)
    return ConsumerReport(folder.resolve().name, tuple(results))


def run_check_consumers(
    folder: Path,
    *,
    dtypes: Sequence[str] = (),
    consumers: Sequence[str] = (),
    as_json: bool = False,
    write: bool = True,
    show: Callable[[str], None] = print,
    progress: Progress = silent,
) -> bool:
    """Check, show the verdicts (Markdown, or JSON), write them to consumers.json in `folder`; whether all is good.

    Raises:
        OutputError: consumers.json cannot be written.
        ArtifactError, Lfm2ExportError: as :func:`check_consumers`.
    """
    report = check_consumers(folder, dtypes=dtypes, consumers=consumers, progress=progress)
    text = json.dumps(report.without_places(places(folder)).to_dict(), indent=2)
    if write:
        try:
            write_atomically(folder / FILE, f"{text}\n".encode())
        except OSError as error:
            raise OutputError(f"{folder / FILE} cannot be written: {error}; make {folder} writable") from error
    show(text if as_json else report.to_markdown())
    return report.good


def _onnxruntime(folder: Path, asked: Mapping[str, Asked]) -> list[ConsumerResult]:
    from lfm2export.consumers.card_loop import check_card_loop

    return check_card_loop(folder, asked)


def _node(folder: Path, asked: Mapping[str, Asked]) -> list[ConsumerResult]:
    from lfm2export.consumers.transformers_js import check_node

    return check_node(folder, asked)


def _node_webgpu(folder: Path, asked: Mapping[str, Asked]) -> list[ConsumerResult]:
    from lfm2export.consumers.transformers_js import check_node

    return check_node(folder, asked, "webgpu")


def _browser(folder: Path, asked: Mapping[str, Asked]) -> list[ConsumerResult]:
    from lfm2export.consumers.transformers_js import check_browser

    return check_browser(folder, asked)


def _genai(folder: Path, asked: Mapping[str, Asked]) -> list[ConsumerResult]:
    from lfm2export.consumers.genai import check_genai

    return check_genai(folder, asked)


def _openvino(folder: Path, asked: Mapping[str, Asked]) -> list[ConsumerResult]:
    from lfm2export.consumers.openvino import check_openvino

    return check_openvino(folder, asked)


_RUNNERS: dict[str, Callable[[Path, Mapping[str, Asked]], list[ConsumerResult]]] = {
    "onnxruntime": _onnxruntime,
    "node": _node,
    "browser": _browser,
    "node-webgpu": _node_webgpu,
    "genai": _genai,
    "openvino": _openvino,
}
