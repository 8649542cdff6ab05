"""onnxruntime-genai: the same folder through its genai_config.json, in an environment of its own."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lfm2export.consumers import locate
from lfm2export.consumers.asked import Asked
from lfm2export.consumers.genai_config import CONFIG, read_checked
from lfm2export.consumers.locate import HERE, Missing
from lfm2export.consumers.prompts import CARD_MESSAGES, CHAT, MAX_NEW_TOKENS, PLAIN, TOOL_CALL
from lfm2export.consumers.reference import compare, judge
from lfm2export.consumers.result import Check, ConsumerResult, Verdict, judged
from lfm2export.consumers.workers import last_words, run_worker
from lfm2export.contract import MODEL_FILES
from lfm2export.errors import ArtifactError
from lfm2export.untrusted.paths import find_file

GENAI = "onnxruntime-genai"
DEVICE = "cpu"
TIMEOUT = 900.0

#: Tokens that the caches are allocated for: prompts, two answers, and room.
MAX_LENGTH = 1024

#: What genai reads of the folder beside its config and the model files.
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "config.json")

PROMPTS = (PLAIN, CHAT, TOOL_CALL)


def check_genai(folder: Path, asked: Mapping[str, Asked]) -> list[ConsumerResult]:
    """Every file: greedy tokens, the chat template, a second turn on the kept cache, a batch padded on the right."""
    python = locate.genai()
    if isinstance(python, Missing):
        return [ConsumerResult.not_run(GENAI, dtype, DEVICE, python.reason) for dtype in asked]
    config = find_file(folder, CONFIG, ArtifactError)
    if config is None:
        reason = f"the folder has no {CONFIG}"
        return [ConsumerResult.not_run(GENAI, dtype, DEVICE, reason) for dtype in asked]
    try:
        checked = read_checked(config, folder, next(iter(asked.values())).model.spec)
    except ArtifactError as error:
        return [ConsumerResult(GENAI, dtype, DEVICE, Verdict.FAILED, reason=str(error)) for dtype in asked]
    tasks = [_task(checked["model"]["decoder"]["filename"], one) for one in asked.values()]
    started = time.perf_counter()
    with _room(folder, checked) as room:
        request = {"folder": str(room), "tasks": tasks}
        answers, said = run_worker([python, "-I", HERE / "genai_worker.py"], request, timeout=TIMEOUT)
    spent = round((time.perf_counter() - started) / max(1, len(tasks)), 1)
    version = f"{answers[0]['version']}, onnxruntime {answers[0]['onnxruntime']}" if answers else None
    answered = {answer["task"]: answer for answer in answers if "task" in answer}
    results = []
    for number, one in enumerate(asked.values()):
        answer = answered.get(number, {"error": last_words(said)})
        if "value" not in answer:
            results.append(ConsumerResult(GENAI, one.dtype, DEVICE, Verdict.FAILED, version, answer["error"]))
        else:
            results.append(replace(_result(one, answer["value"]), version=version, seconds=spent))
    return results


@contextlib.contextmanager
def _room(folder: Path, config: Mapping[str, Any]) -> Iterator[Path]:
    """A folder that holds `config`, written anew, and links to what else genai reads of `folder`.

    So no key reaches genai that was not checked, even where the file changes meanwhile.
    """
    with tempfile.TemporaryDirectory(prefix="lfm2export-genai-") as scratch:
        room = Path(scratch)
        (room / CONFIG).write_text(json.dumps(config), encoding="utf-8")
        (room / "onnx").symlink_to(folder.resolve() / "onnx", target_is_directory=True)
        for name in FILES:
            found = find_file(folder, name, ArtifactError)
            if found is not None:
                (room / name).symlink_to(found.resolve())
        yield room


def _task(named: str, asked: Asked) -> dict[str, Any]:
    """What is asked of one file; the one that genai_config.json names is opened without an overlay."""
    file = f"onnx/{MODEL_FILES[asked.dtype]}"
    return {
        "overlay": None if named == file else {"model": {"decoder": {"filename": file}}},
        "prompts": asked.requests(PROMPTS),
        "chats": [list(CARD_MESSAGES)],
        "batch": [list(row.prompt) for row in asked.batch],
        "pad": 0,
        "limit": MAX_NEW_TOKENS,
        "max_length": MAX_LENGTH,
    }


def _result(asked: Asked, value: Mapping[str, Any]) -> ConsumerResult:
    chat = tuple(value["rendered"][0]) == asked.answer(CHAT).prompt
    checks = [Check("chat template", Verdict.PASSED if chat else Verdict.FAILED, "renders and tokenizes as ours")]
    comparisons = []
    for prompt, run in zip(PROMPTS, value["runs"], strict=True):
        wanted = asked.answer(prompt)
        comparison = compare(prompt.name, wanted, run["tokens"], run["top"])
        comparisons.append(comparison)
        for turn in run["turns"] if comparison.at is None else ():
            _, second = asked.second_turn(prompt, MAX_NEW_TOKENS)
            comparisons.append(compare(f"{prompt.name}, second turn", second, turn["tokens"], turn["top"]))
    widest = max(len(row.prompt) for row in asked.batch)
    for wanted, row in zip(asked.batch, value["batch"], strict=True):
        count = len(wanted.tokens)
        name = f"row of a batch, {widest - len(wanted.prompt)} pads on the right"
        comparisons.append(compare(name, wanted, row["tokens"][:count], row["top"][:count]))
    judgements, noise = judge(asked.dtype, comparisons)
    checks += judgements
    return ConsumerResult(GENAI, asked.dtype, DEVICE, judged(checks), checks=tuple(checks), noise=noise)
