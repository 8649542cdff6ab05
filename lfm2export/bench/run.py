"""Benchmark a folder: every file in a process of its own, the bandwidth of memory before and after.

In Node and in a browser Transformers.js runs the files (`bench.javascript`), and no bandwidth is read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import lfm2export
from lfm2export import __version__
from lfm2export.artifact import available_models, find_model
from lfm2export.bench import javascript
from lfm2export.bench.bandwidth import read_bandwidth, usable_cores
from lfm2export.bench.machine import machine
from lfm2export.bench.results import BenchResult, ContextResult, FileResult, spread
from lfm2export.bench.traffic import cache_bytes, weight_bytes
from lfm2export.consumers.transformers_js import DEFAULT_DTYPES
from lfm2export.contract import MODEL_FILES, cache_dtype, held_kv_cache
from lfm2export.errors import ArtifactError, FaultError, Lfm2ExportError, StepError
from lfm2export.package.graph import read_graph
from lfm2export.progress import Progress, silent
from lfm2export.spec import ModelSpec, parse_spec, read_config

Runtime = Literal["python", "node", "browser"]

CONTEXTS = (128, 512, 4096)
DECODED = 32
REPEATS = 3

#: Bytes read at a time to bring a file into the system's memory.
BLOCK = 16 << 20

#: Where this package is, so that a worker measures this one and no other that is installed.
ROOT = Path(lfm2export.__file__).resolve().parents[1]


@dataclass(frozen=True)
class _Answers:
    """Of the workers for one file: the one that ran everything, and the sessions opened by all of them."""

    loop: str
    loads: tuple[dict[str, Any], ...]
    runs: tuple[dict[str, Any], ...]


def bench_artifact(
    folder: Path,
    dtypes: Sequence[str] = (),
    *,
    runtime: Runtime = "python",
    device: str | None = None,
    contexts: Sequence[int] = (),
    threads: int | None = None,
    repeats: int = REPEATS,
    decoded: int = DECODED,
    progress: Progress = silent,
) -> BenchResult:
    """Measure the files of `folder`, of any LFM2 ONNX folder of this layout.

    Args:
        dtypes: default the first that is there of `artifact.PREFERENCE`, on wasm what Transformers.js takes there.
        runtime: this package's loop, or Transformers.js in Node or in a browser.
        device: cpu, wasm or webgpu; default what the runtime takes by itself.
        contexts: prompt lengths in tokens; default :data:`CONTEXTS`, of which those are skipped that the model has no
            room for.
        threads: intra-op threads, and threads of the read test; default one for each core that may be used.
        repeats: of every prompt, and of the load in Python.
        decoded: tokens decoded after each prompt.

    Raises:
        ArtifactError, SourceError, ConfigError: there is no such file, or it does not load or run.
        StepError: a context that was asked for is beyond the model's.
        Lfm2ExportError: a device that the runtime has not, or a runtime that is not installed.
    """
    if runtime == "python" and device not in (None, "cpu"):
        raise Lfm2ExportError(
            f"--device is {device}, expected cpu with --runtime python; add --runtime node or browser"
        )
    find_model(folder, dtypes[0] if dtypes else None)
    place = javascript.find_runtime(runtime, device, folder) if runtime != "python" else None
    device = place.device if place is not None else "cpu"
    paths = {dtype: find_model(folder, dtype) for dtype in dtypes or (_preferred(folder, device),)}
    spec = parse_spec(read_config(folder))
    limit = spec.max_position_embeddings
    for context in contexts:
        if context + decoded > limit:
            raise StepError(
                f"{context} tokens and {decoded} after them exceed the context length {limit}; give a smaller context"
            )
    wanted = sorted(set(contexts or CONTEXTS))
    threads = threads if threads is not None else usable_cores()
    request = {
        "folder": str(folder.resolve()),
        "threads": threads,
        "contexts": [context for context in wanted if context + decoded <= limit],
        "repeats": repeats,
        "decoded": decoded,
    }
    bandwidth = read_bandwidth(threads) if place is None else None
    answers = {}
    for dtype, path in paths.items():
        asked = {**request, "dtype": dtype}
        answers[dtype] = (
            _measure(path, asked, progress)
            if place is None
            else _measure_javascript(path, folder, place, {**asked, "vocabulary": spec.vocab_size}, progress)
        )
    if bandwidth is not None:
        bandwidth = max(bandwidth, read_bandwidth(threads))
    return BenchResult(
        folder=folder.resolve().name,
        runtime=runtime,
        device=device,
        threads=threads,
        repeats=repeats,
        read_bandwidth=bandwidth,
        machine=machine(),
        versions={
            "lfm2export": __version__,
            **({"onnxruntime": metadata.version("onnxruntime")} if place is None else place.versions),
        },
        files=tuple(_file(dtype, paths[dtype], spec, found, wanted, bandwidth) for dtype, found in answers.items()),
    )


def warm(files: Iterable[Path]) -> None:
    """Read `files` once, so that the system holds them in memory."""
    for file in files:
        with file.open("rb") as content:
            while content.read(BLOCK):
                pass


def _preferred(folder: Path, device: str) -> str:
    if DEFAULT_DTYPES.get(device) in available_models(folder):
        return DEFAULT_DTYPES[device]
    path = find_model(folder)
    return next(dtype for dtype, name in MODEL_FILES.items() if name == path.name)


def _measure(path: Path, request: dict[str, Any], progress: Progress) -> _Answers:
    """All runs in one process, and the load in as many as there are repetitions."""
    warm(_files(path))
    total = len(request["contexts"]) * request["repeats"]
    stage = f"measure {request['dtype']}"
    whole = _worker(path, request, lambda done: progress(stage, done, total, "runs"))
    again = [_worker(path, {**request, "contexts": []}, lambda done: None) for _ in range(request["repeats"] - 1)]
    loads = tuple(answer["loaded"] for answer in (whole, *again))
    return _Answers(whole["loop"], loads, tuple(whole["runs"]))


def _measure_javascript(
    path: Path, folder: Path, place: javascript.JavaScriptRuntime, request: dict[str, Any], progress: Progress
) -> _Answers:
    warm(_files(path))
    answer = javascript.measure_file(place, folder, request, progress)
    return _Answers("Transformers.js", (answer["loaded"],), tuple(answer["runs"]))


def _worker(path: Path, request: dict[str, Any], on_run: Callable[[int], None]) -> dict[str, Any]:
    """The answer of :mod:`lfm2export.bench.worker` to `request`.

    Raises:
        ArtifactError: the file does not load or run there, or the process was ended.
        FaultError: the process failed by itself.
    """
    import_path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-P", "-m", "lfm2export.bench.worker", json.dumps(request)]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=said, text=True, env={**os.environ, "PYTHONPATH": import_path}
        ) as process,
    ):
        assert process.stdout is not None
        answer: dict[str, Any] = {}
        try:
            for line in process.stdout:
                answer = json.loads(line)
                if "progress" in answer:
                    on_run(answer["progress"])
        except BaseException:
            process.kill()  # whoever ends this one, does not wait for a measurement
            raise
        code = process.wait()
        said.seek(0)
        words = said.read().strip().splitlines()
    if "error" in answer:
        raise ArtifactError(answer["error"])
    last = f" ({words[-1][:300]})" if words else ""
    if code < 0:
        raise ArtifactError(
            f"measuring {path} ended with signal {-code}; perhaps it needs more memory than there is{last}"
        )
    if code or "loaded" not in answer:
        raise FaultError(f"the process that measures {path} ended with exit code {code}{last}")
    return answer


def _file(
    dtype: str, path: Path, spec: ModelSpec, answers: _Answers, contexts: Sequence[int], bandwidth: float | None
) -> FileResult:
    weights = weight_bytes(path)
    kv = held_kv_cache(read_graph(path).inputs)
    size = sum(file.stat().st_size for file in _files(path))
    first = answers.loads[0]
    loaded = first["loaded_resident"]
    return FileResult(
        dtype=dtype,
        file=path.name,
        bytes=size,
        loop=answers.loop,
        load_seconds=spread([load["seconds"] for load in answers.loads]),
        base_resident=first["base_resident"],
        loaded_resident=loaded,
        loaded_anonymous=first["loaded_anonymous"],
        resident_ratio=loaded / size if loaded is not None else None,
        contexts=tuple(
            _context(context, [run for run in answers.runs if run["context"] == context], reads, bandwidth, spec)
            for context in contexts
            for reads in [weights + cache_bytes(spec, cache_dtype(dtype), context, kv)]
        ),
    )


def _context(
    context: int, runs: Sequence[dict[str, Any]], reads: int, bandwidth: float | None, spec: ModelSpec
) -> ContextResult:
    if not runs:
        return ContextResult(context, skipped=f"the model has room for {spec.max_position_embeddings} tokens")
    decode = spread([run["decoded"] / run["decode_seconds"] for run in runs])
    return ContextResult(
        context=context,
        decoded=runs[0]["decoded"],
        first_token_seconds=spread([run["first_token_seconds"] for run in runs]),
        prefill_rate=spread([context / run["first_token_seconds"] for run in runs]),
        decode_rate=decode,
        peak_resident=runs[-1]["peak_resident"],
        peak_anonymous=runs[-1]["peak_anonymous"],
        bytes_per_token=reads,
        bandwidth_share=reads * decode.median / bandwidth if bandwidth is not None else None,
    )


def _files(path: Path) -> list[Path]:
    """The graph and its data files."""
    return [path, *(path.parent / name for name in read_graph(path).locations if (path.parent / name).is_file())]
