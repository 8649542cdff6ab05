"""The same figures from Transformers.js, in Node or in a page: what a visitor of the page will see.

One process for a file. Its first steps, which compile, are not counted; the load is, with the files served from this
machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lfm2export.artifact import find_model
from lfm2export.consumers import locate
from lfm2export.consumers.locate import Missing
from lfm2export.consumers.transformers_js import INT8_ON_WEBGPU, chunks_fault, refusal, run_script
from lfm2export.consumers.workers import last_words
from lfm2export.contract import held_kv_cache
from lfm2export.errors import ArtifactError, Lfm2ExportError
from lfm2export.package.graph import read_graph
from lfm2export.progress import Progress
from lfm2export.untrusted.escape import one_line

JavaScript = Literal["node", "browser"]

#: Devices of each runtime, the one that it takes by itself first.
DEVICES: Mapping[JavaScript, tuple[str, ...]] = {"node": ("cpu", "webgpu"), "browser": ("wasm", "webgpu")}


@dataclass(frozen=True)
class JavaScriptRuntime:
    """Where files are measured. versions: of library, runtime and browser. adapter: what a page says of its GPU."""

    name: JavaScript
    device: str
    versions: Mapping[str, str]
    adapter: Mapping[str, Any] | None = None


def find_runtime(name: JavaScript, device: str | None, folder: Path) -> JavaScriptRuntime:
    """The runtime `name` of this machine, on `device` (default: its first of :data:`DEVICES`).

    Raises:
        Lfm2ExportError: it has no such device, or something is not installed; the message says how to get it.
        ArtifactError: config.json would lead the library astray.
    """
    device = device if device is not None else DEVICES[name][0]
    if device not in DEVICES[name]:
        raise Lfm2ExportError(f"--device is {device}, expected {' or '.join(DEVICES[name])} with --runtime {name}")
    for found in (locate.node(), *((locate.browser(),) if name == "browser" else ())):
        if isinstance(found, Missing):
            raise Lfm2ExportError(found.reason)
    fault = chunks_fault(folder)
    if fault is not None:
        raise ArtifactError(fault)
    node = locate.node()
    assert isinstance(node, Path)
    packages = ("@huggingface/transformers", "onnxruntime-node" if name == "node" else "onnxruntime-web")
    versions = {package: locate.package_version(package) or "unknown" for package in packages}
    if name == "node":
        return JavaScriptRuntime(name, device, {**versions, "Node": locate.node_version(node)})
    facts, said = run_script("browser.mjs", folder, [])
    if not facts:
        raise Lfm2ExportError(f"the browser did not start ({last_words(said)}); set CHROMIUM to one that does")
    return JavaScriptRuntime(name, device, {**versions, "Chromium": facts[0]["browser"]}, facts[0]["adapter"])


def measure_file(
    runtime: JavaScriptRuntime, folder: Path, request: Mapping[str, Any], progress: Progress
) -> dict[str, Any]:
    """The answer of one file: {loaded, runs} as `bench.worker` gives them.

    Args:
        request: dtype, threads, contexts from short to long, repeats, decoded, vocabulary.

    Raises:
        ArtifactError: the file does not load or run there, or is not for that device.
    """
    dtype = request["dtype"]
    kv = held_kv_cache(read_graph(find_model(folder, dtype)).inputs)
    reason = INT8_ON_WEBGPU if (runtime.device, kv) == ("webgpu", "int8") else None
    if runtime.name == "browser":
        reason = refusal(dtype, runtime.device, runtime.adapter, kv)
    if reason is not None:
        raise ArtifactError(f"{dtype} on {runtime.device}: {reason}; choose another --dtype")
    progress(f"measure {dtype} in {runtime.name}", 0, None, "runs")
    task = {**request, "kind": "bench", "device": runtime.device}
    environment = locate.vulkan_environment() if (runtime.name, runtime.device) == ("node", "webgpu") else {}
    answers, said = run_script(f"{runtime.name}.mjs", folder, [task], environment)
    answer = next((found for found in answers if "task" in found), None)
    if answer is None or "value" not in answer:
        error = last_words(said) if answer is None else one_line(str(answer.get("error")))[:300]
        raise ArtifactError(
            f"{dtype} does not run in {runtime.name} on {runtime.device} ({error}); try another --dtype"
        )
    value: dict[str, Any] = answer["value"]
    return value
