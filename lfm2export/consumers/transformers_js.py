"""Transformers.js, in Node and in a browser: what is asked, and what the answers are worth."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lfm2export.consumers import locate
from lfm2export.consumers.asked import Asked
from lfm2export.consumers.locate import JS, Missing
from lfm2export.consumers.prompts import (
    BASIC_EXAMPLE,
    BATCH,
    CHAT,
    MAX_NEW_TOKENS,
    PLAIN,
    SOFTWARE_MAX_NEW_TOKENS,
    TOOL_CALL,
    TOOLS_EXAMPLE,
    Example,
    Prompt,
)
from lfm2export.consumers.reference import Comparison, compare, judge
from lfm2export.consumers.result import Check, ConsumerResult, Verdict, judged
from lfm2export.consumers.workers import Answer, last_words, run_worker
from lfm2export.contract import HALF_DTYPES, MODEL_FILES, KvCache
from lfm2export.spec import read_config
from lfm2export.untrusted.paths import named, shown

NODE = "transformers.js/node"
BROWSER = "transformers.js/browser"

#: Seconds for all files of one consumer.
TIMEOUT = 1800.0

#: What the library takes by itself, by device, where neither the caller nor config.json names a dtype; else fp32.
DEFAULT_DTYPES = {"wasm": "q8"}

INT8_ON_WEBGPU = "WebGPU has no kernel for int8 keys and values; for it build without --kv-cache int8"


@dataclass(frozen=True)
class Request:
    """One model file on one device. `asked_dtype` None: the library chooses, and `dtype` is what it must choose.

    examples: of the card, which the job also answers under the card's own settings.
    """

    dtype: str
    device: str
    asked_dtype: str | None
    examples: tuple[Example, ...] = (BASIC_EXAMPLE, TOOLS_EXAMPLE)

    @property
    def card_prompts(self) -> tuple[Prompt, ...]:
        return tuple(example.prompt for example in self.examples)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return (PLAIN, CHAT, TOOL_CALL, *self.card_prompts)

    def tasks(self) -> list[dict[str, Any]]:
        """The job, and the examples."""
        job: dict[str, Any] = {
            "kind": "job",
            "dtype": self.asked_dtype,
            "device": self.device,
            "max_new_tokens": MAX_NEW_TOKENS,
            "prompts": [prompt.request() for prompt in self.prompts],
            "batch": list(BATCH),
            "alone": True,
            "software_max_new_tokens": SOFTWARE_MAX_NEW_TOKENS,
            # An emulated GPU is slow, and its subgroups are smaller than the prefill kernel of attention expects:
            # from 32 new tokens on, one bare GroupQueryAttention is off by .05 there (1e-7 below; 1.30 and 1.31-dev).
            "software_prompts": [PLAIN.request()],
            "software_alone": False,
        }
        return [job, *(example.request(self.dtype, self.device) for example in self.examples)]


def run_script(
    script: str, folder: Path, tasks: Sequence[Mapping[str, Any]], environment: Mapping[str, str] | None = None
) -> tuple[list[Answer], str]:
    """Run `tasks` with js/`script`; the answers in order, and what the process said on stderr."""
    found = locate.browser()
    chromium = {} if isinstance(found, Missing) else {"CHROMIUM": str(found)}
    request = {"folder": str(folder.resolve()), "tasks": list(tasks)}
    return run_worker(["node", JS / script], request, timeout=TIMEOUT, environment={**chromium, **(environment or {})})


def chunks_fault(folder: Path) -> str | None:
    """Why the library is not started on `folder`: config.json states more data files than there are, and the library
    makes a list of as many names as it says. None: it may.

    Raises:
        SourceError: config.json cannot be read.
    """
    settings = read_config(folder).get("transformers.js_config")
    stated = settings.get("use_external_data_format") if isinstance(settings, dict) else None
    if stated is None:
        return None
    counts = {name: _data_files(folder, name) for name in MODEL_FILES.values()}
    most = max(counts.values())  # a number for all files, or one under a name that several of them look up
    for name, count in stated.items() if isinstance(stated, dict) else [("every file", stated)]:
        there = counts.get(name, most)
        if count is not None and not (isinstance(count, int) and 0 <= count <= there):
            return (
                f"config.json: transformers.js_config.use_external_data_format of {named(name)} is {shown(count)}, and "
                f"there are {there} data files; build the artifact again"
            )
    return None


def _data_files(folder: Path, name: str) -> int:
    """How many data files of the model file `name` there are, by the names that the library asks for."""
    path = folder / "onnx" / f"{name}_data"
    count = 0
    while path.with_name(f"{path.name}_{count}" if count else path.name).is_file():
        count += 1
    return count


def check_node(folder: Path, asked: Mapping[str, Asked], device: str = "cpu") -> list[ConsumerResult]:
    """Every file in Node, on the processor or on WebGPU through Vulkan."""
    if device == "webgpu":
        refused = [dtype for dtype, one in asked.items() if one.model.kv_cache == "int8"]
        if refused:
            others = {dtype: one for dtype, one in asked.items() if dtype not in refused}
            run = check_node(folder, others, device) if others else []
            return [*run, *(ConsumerResult.not_run(NODE, dtype, device, INT8_ON_WEBGPU) for dtype in refused)]
    node = locate.node()
    if isinstance(node, Missing):
        return [ConsumerResult.not_run(NODE, dtype, device, node.reason) for dtype in asked]
    fault = chunks_fault(folder)
    if fault is not None:
        return [ConsumerResult(NODE, dtype, device, Verdict.FAILED, reason=fault) for dtype in asked]
    version = (
        f"{locate.package_version('@huggingface/transformers')}, onnxruntime-node "
        f"{locate.package_version('onnxruntime-node')}, Node {locate.node_version(node)}"
    )
    environment = locate.vulkan_environment() if device == "webgpu" else {}
    software = bool(environment)
    if device == "cpu":
        examples: tuple[Example, ...] = (BASIC_EXAMPLE, TOOLS_EXAMPLE)
    else:  # the basic example names no device; the other's prompt is longer than an emulated GPU computes rightly
        examples = () if software else (TOOLS_EXAMPLE,)
    requests = [Request(dtype, device, dtype, examples) for dtype in asked]
    tasks = [[_reduced(task) if software else task for task in request.tasks()] for request in requests]
    started = time.perf_counter()
    answers, said = run_script("node.mjs", folder, [task for group in tasks for task in group], environment)
    spent = (time.perf_counter() - started) / max(1, len(requests))
    answered = {answer["task"]: answer for answer in answers}
    results: list[ConsumerResult] = []
    for request in requests:
        count, done = len(request.tasks()), sum(len(r.tasks()) for r in requests[: requests.index(request)])
        group = [answered.get(done + k, {"error": last_words(said)}) for k in range(count)]
        error = group[0].get("error")
        if device == "webgpu" and error is not None and "adapter" in error:
            reason = f"no WebGPU adapter: Vulkan finds no device; {locate.SETUP}, or set LFM2EXPORT_VULKAN=system"
            results.append(ConsumerResult.not_run(NODE, request.dtype, device, reason, version))
            continue
        result = evaluate(NODE, version, request, asked[request.dtype], group)
        results.append(replace(result, seconds=round(spent, 1)))
    return results


def check_browser(
    folder: Path, asked: Mapping[str, Asked], devices: Sequence[str] = ("wasm", "webgpu")
) -> list[ConsumerResult]:
    """Every file in a page on wasm and WebGPU; float16 files only where the adapter computes in float16."""
    pairs = [(dtype, device) for device in devices for dtype in asked]
    for found in (locate.node(), locate.browser()):
        if isinstance(found, Missing):
            return [ConsumerResult.not_run(BROWSER, dtype, device, found.reason) for dtype, device in pairs]
    fault = chunks_fault(folder)
    if fault is not None:
        return [ConsumerResult(BROWSER, dtype, device, Verdict.FAILED, reason=fault) for dtype, device in pairs]
    facts, said = run_script("browser.mjs", folder, [])
    library = (
        f"{locate.package_version('@huggingface/transformers')}, onnxruntime-web "
        f"{locate.package_version('onnxruntime-web')}"
    )
    if not facts:
        reason = f"the browser did not start: {last_words(said)}"
        return [ConsumerResult(BROWSER, dtype, device, Verdict.FAILED, library, reason) for dtype, device in pairs]
    version = f"{library}, Chromium {facts[0]['browser']}"
    reasons = {pair: refusal(*pair, facts[0]["adapter"], asked[pair[0]].model.kv_cache) for pair in pairs}
    refused = {pair: reason for pair, reason in reasons.items() if reason is not None}
    defaults = {device: default_dtype(folder, device) for device in devices}
    requests = [_browser_request(*pair, defaults[pair[1]]) for pair in pairs if pair not in refused]
    tasks = [request.tasks() for request in requests]
    started = time.perf_counter()
    lines, said = run_script("browser.mjs", folder, [task for group in tasks for task in group])
    spent = (time.perf_counter() - started) / max(1, len(requests))
    answered = {line["task"]: line for line in lines if "task" in line}
    results, done = [], 0
    for request, group in zip(requests, tasks, strict=True):
        taken = [answered.get(done + k, {"error": last_words(said)}) for k in range(len(group))]
        done += len(group)
        device_version = version if request.device == "wasm" else f"{version}, {_adapter_name(facts[0]['adapter'])}"
        result = evaluate(BROWSER, device_version, request, asked[request.dtype], taken)
        results.append(replace(result, seconds=round(spent, 1)))
    results += [ConsumerResult.not_run(BROWSER, *pair, reason, version) for pair, reason in refused.items()]
    return results


def evaluate(consumer: str, version: str, request: Request, asked: Asked, answers: Sequence[Answer]) -> ConsumerResult:
    """The result of one file from the answers to its tasks: the job first, then the examples."""
    job, *examples = answers
    if "value" not in job:
        reason = str(job.get("error"))
        return ConsumerResult(consumer, request.dtype, request.device, Verdict.FAILED, version, reason)
    value = job["value"]
    comparisons: list[Comparison] = []
    checks: list[Check] = []
    by_name = {prompt.name: prompt for prompt in request.prompts}
    for run in value["runs"]:
        prompt = by_name[run["name"]]
        wanted = asked.answer(prompt)
        if tuple(run["input_ids"]) != wanted.prompt:
            checks.append(Check(f"prompt: {prompt.name}", Verdict.FAILED, "tokenizes differently"))
            continue
        comparisons.append(compare(prompt.name, wanted.first(run["limit"]), run["tokens"], run["top"]))
    for wanted, row in zip(asked.batch, value["batch"], strict=True):
        wanted = wanted.first(row["limit"])
        count, name = len(wanted.tokens), f"row of a batch, {row['pads']} pads on the left"
        comparisons.append(compare(name, wanted, row["tokens"][:count], row["top"][:count]))
        if row["alone"] is not None:
            alone = row["alone"]
            comparisons.append(compare(f"row alone, of {row['pads']} pads", wanted, alone["tokens"], alone["top"]))
    judgements, noise = judge(request.dtype, comparisons)
    runs = {run["name"]: run for run in value["runs"]}
    checks += [*judgements, *(_example_check(*pair, runs) for pair in zip(request.card_prompts, examples, strict=True))]
    checks += _page_checks(request, answers)
    verdict = judged(checks)
    return ConsumerResult(consumer, request.dtype, request.device, verdict, version, checks=tuple(checks), noise=noise)


def _example_check(prompt: Prompt, answer: Answer, runs: Mapping[str, Any]) -> Check:
    """The card's own program gave what the same consumer gave for the same prompt (which was compared before)."""
    if "value" not in answer:
        return Check(prompt.name, Verdict.FAILED, str(answer.get("error")))
    run, value = runs[prompt.name], answer["value"]
    if "output" in value:
        got, wanted = value["output"][0]["generated_text"][-1]["content"], run["text"]
    else:
        got, wanted = value["sequences"][0][len(run["input_ids"]) :], run["tokens"]
    same = got == wanted
    return Check(
        prompt.name,
        Verdict.PASSED if same else Verdict.FAILED,
        f"gave {got!r}" + ("" if same else f", expected {wanted!r}"),
    )


def _page_checks(request: Request, answers: Sequence[Answer]) -> list[Check]:
    """No request left the page's server, and the file that was loaded is the right one. Empty for Node."""
    if "foreign" not in answers[0]:
        return []
    foreign = [address for answer in answers for address in answer.get("foreign", ())]
    loaded = [name for name in answers[0]["files"] if name.endswith(".onnx")]
    wanted = f"onnx/{MODEL_FILES[request.dtype]}"
    return [
        Check("own server only", Verdict.FAILED if foreign else Verdict.PASSED, ", ".join(foreign) or "no other host"),
        Check("file", Verdict.PASSED if loaded == [wanted] else Verdict.FAILED, f"loaded {', '.join(loaded)}"),
    ]


def default_dtype(folder: Path, device: str) -> str:
    """The dtype that a pipeline takes on `device` where its caller names none, by config.json.

    Raises:
        SourceError: config.json cannot be read.
    """
    settings = _object(read_config(folder).get("transformers.js_config"))
    own = _object(_object(settings.get("device_config")).get(device))
    stated = own.get("dtype", settings.get("dtype"))
    return stated if isinstance(stated, str) else DEFAULT_DTYPES.get(device, "fp32")


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _browser_request(dtype: str, device: str, default: str) -> Request:
    """Where the library's own choice, `default`, is `dtype`, it is told none. The examples run on wasm, for WebGPU may
    be slow.
    """
    asked_dtype = None if default == dtype else dtype
    return Request(dtype, device, asked_dtype, (BASIC_EXAMPLE, TOOLS_EXAMPLE) if device == "wasm" else ())


def refusal(dtype: str, device: str, adapter: Mapping[str, Any] | None, kv: KvCache = "native") -> str | None:
    """Why `dtype` is not run on `device` of this browser; None: it is."""
    if device == "webgpu" and adapter is None:
        return "the browser has no WebGPU adapter"
    if device == "webgpu" and kv == "int8":
        return INT8_ON_WEBGPU
    if dtype not in HALF_DTYPES:
        return None
    if device == "wasm":
        return "float16 activations are for GPUs"
    assert adapter is not None
    return None if adapter["float16"] else f"{_adapter_name(adapter)} has no shader-f16"


def _adapter_name(adapter: Mapping[str, Any]) -> str:
    return " ".join(adapter[name] for name in ("vendor", "architecture", "description") if adapter[name])


def _reduced(task: dict[str, Any]) -> dict[str, Any]:
    """`task` with the numbers of tokens of an emulated GPU (the browser's script does this by itself)."""
    return task | {name.removeprefix("software_"): task[name] for name in task if name.startswith("software_")}
