"""The model card's ONNX Runtime loop, as it stands in the card, on this onnxruntime and on the oldest one."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from lfm2export.artifact import find_model
from lfm2export.consumers import locate
from lfm2export.consumers.asked import Asked
from lfm2export.consumers.locate import HERE, Missing
from lfm2export.consumers.operators import lacking
from lfm2export.consumers.prompts import CARD_LOOP, MAX_NEW_TOKENS
from lfm2export.consumers.reference import compare, judge
from lfm2export.consumers.result import Check, ConsumerResult, Verdict, judged
from lfm2export.consumers.workers import Answer, last_words, run_worker
from lfm2export.contract import FIRST_INT8_RELEASE, HALF_DTYPES, MODEL_FILES

CONSUMER = "onnxruntime/card"
DEVICE = "cpu"
TIMEOUT = 900.0


def check_card_loop(folder: Path, asked: Mapping[str, Asked]) -> list[ConsumerResult]:
    """Every file on both releases."""
    results: list[ConsumerResult] = []
    for python in (Path(sys.executable), locate.oldest_onnxruntime()):
        if isinstance(python, Missing):
            results += [ConsumerResult.not_run(CONSUMER, dtype, DEVICE, python.reason) for dtype in asked]
        else:
            results += run_release(python, folder, asked)
    return results


def run_release(python: Path, folder: Path, asked: Mapping[str, Asked]) -> list[ConsumerResult]:
    """Every file with `python`'s onnxruntime."""
    program = (resources.files("lfm2export.consumers") / "examples" / "loop.py.txt").read_text(encoding="utf-8")
    request = {
        "program": program,
        "folder": str(folder.resolve()),
        "limit": MAX_NEW_TOKENS,
        "tasks": [
            {"file": MODEL_FILES[dtype], "half": dtype in HALF_DTYPES, "int8": one.model.kv_cache == "int8"}
            for dtype, one in asked.items()
        ],
    }
    started = time.perf_counter()
    answers, said = run_worker([python, HERE / "card_loop_worker.py"], request, timeout=TIMEOUT)
    spent = round((time.perf_counter() - started) / max(1, len(asked)), 1)
    version = answers[0]["version"] if answers else None
    answered = {answer["task"]: answer for answer in answers if "task" in answer}
    results = []
    for number, one in enumerate(asked.values()):
        why = lacking(find_model(folder, one.dtype), version)
        if why is not None:
            results.append(ConsumerResult.not_run(CONSUMER, one.dtype, DEVICE, why, version))
        else:
            results.append(_result(one, answered.get(number, {"error": last_words(said)}), version, spent))
    return results


def _result(asked: Asked, answer: Answer, version: str | None, seconds: float) -> ConsumerResult:
    if asked.model.kv_cache == "int8" and version is not None and _release(version) < FIRST_INT8_RELEASE:
        first = ".".join(map(str, FIRST_INT8_RELEASE))
        reason = f"int8 keys and values need onnxruntime {first} or newer; for older ones build without --kv-cache int8"
        return ConsumerResult.not_run(CONSUMER, asked.dtype, DEVICE, reason, version)
    if "value" not in answer:
        return ConsumerResult(CONSUMER, asked.dtype, DEVICE, Verdict.FAILED, version, str(answer["error"]))
    value, wanted = answer["value"], asked.answer(CARD_LOOP)
    same = tuple(value["prompt"]) == wanted.prompt
    judgements, noise = judge(asked.dtype, [compare(CARD_LOOP.name, wanted, value["tokens"], value["top"])])
    checks = [Check("prompt", Verdict.PASSED if same else Verdict.FAILED, "tokenizes as ours"), *judgements]
    return ConsumerResult(
        CONSUMER, asked.dtype, DEVICE, judged(checks), version, checks=tuple(checks), noise=noise, seconds=seconds
    )


def _release(version: str) -> tuple[int, ...]:
    """(major, minor) of a version."""
    return tuple(int(part) for part in version.split(".")[:2])
