"""OpenVINO on the CPU: its own ONNX reader on every file, in the model card's loop, in an environment of its own.

One row at a time: its GroupQueryAttention (2026.4) takes a batch of one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lfm2export import contract
from lfm2export.artifact import available_models
from lfm2export.consumers import locate
from lfm2export.consumers.asked import Asked
from lfm2export.consumers.locate import HERE, Missing
from lfm2export.consumers.prompts import CHAT, MAX_NEW_TOKENS, PLAIN, TOOL_CALL
from lfm2export.consumers.reference import compare, judge
from lfm2export.consumers.result import ConsumerResult, Verdict, judged
from lfm2export.consumers.workers import last_words, run_worker
from lfm2export.package.graph import read_graph

OPENVINO = "openvino"
DEVICE = "cpu"
TIMEOUT = 900.0

PROMPTS = (PLAIN, CHAT, TOOL_CALL)

#: An operator that it cannot run as the files have it -> why.
REFUSED = {
    "QuantizeLinear": "OpenVINO's QuantizeLinear takes no scale for each token (build with --q8 blocks)",
    "com.microsoft.CausalConvWithState": "OpenVINO has no CausalConvWithState (build with --operators plain)",
}

INT8_CACHES = (
    "the process of OpenVINO 2026.4 ends without a word on int8 keys and values; build without --kv-cache int8"
)


def check_openvino(folder: Path, asked: Mapping[str, Asked]) -> list[ConsumerResult]:
    """Every file that it can run: greedy tokens, a second turn on the kept caches."""
    python = locate.openvino()
    if isinstance(python, Missing):
        return [ConsumerResult.not_run(OPENVINO, dtype, DEVICE, python.reason) for dtype in asked]
    files = available_models(folder)
    refused = {dtype: reason for dtype in asked if (reason := _refusal(files[dtype])) is not None}
    started = time.perf_counter()
    tried = [one for dtype, one in asked.items() if dtype not in refused]
    request = {"tasks": [_task(files[one.dtype], one) for one in tried]}
    answers, said = run_worker([python, "-I", HERE / "openvino_worker.py"], request, timeout=TIMEOUT)
    spent = round((time.perf_counter() - started) / max(1, len(tried)), 1)
    version = str(answers[0]["version"]) if answers else None
    answered = {answer["task"]: answer for answer in answers if "task" in answer}
    results = {
        dtype: ConsumerResult.not_run(OPENVINO, dtype, DEVICE, reason, version) for dtype, reason in refused.items()
    }
    for number, one in enumerate(tried):
        answer = answered.get(number, {"error": last_words(said)})
        if "value" not in answer:
            results[one.dtype] = ConsumerResult(OPENVINO, one.dtype, DEVICE, Verdict.FAILED, version, answer["error"])
        else:
            results[one.dtype] = replace(_result(one, answer["value"]), version=version, seconds=spent)
    return [results[dtype] for dtype in asked]


def _refusal(file: Path) -> str | None:
    facts = read_graph(file)
    if contract.held_kv_cache(facts.inputs) == "int8":
        return INT8_CACHES
    return next((reason for name, reason in REFUSED.items() if name in facts.op_counts), None)


def _task(file: Path, asked: Asked) -> dict[str, Any]:
    sizes = {contract.BATCH: 1, contract.PAST: 0}
    pasts = [cache.past for cache in asked.model.contract.caches]
    return {
        "file": str(file.resolve()),
        "caches": [[past.name, [sizes.get(str(size), size) for size in past.shape], past.dtype] for past in pasts],
        "prompts": asked.requests(PROMPTS),
        "ends": sorted(asked.defaults.eos_ids),
    }


def _result(asked: Asked, value: Mapping[str, Any]) -> ConsumerResult:
    comparisons = []
    for prompt, run in zip(PROMPTS, value["runs"], strict=True):
        comparison = compare(prompt.name, asked.answer(prompt), run["tokens"], run["top"])
        comparisons.append(comparison)
        for turn in run["turns"] if comparison.at is None else ():
            _, second = asked.second_turn(prompt, MAX_NEW_TOKENS)
            comparisons.append(compare(f"{prompt.name}, second turn", second, turn["tokens"], turn["top"]))
    checks, noise = judge(asked.dtype, comparisons)
    return ConsumerResult(OPENVINO, asked.dtype, DEVICE, judged(checks), checks=tuple(checks), noise=noise)
