"""Runs in the environment of OpenVINO: `python openvino_worker.py REQUEST ANSWERS`. Imports nothing of ours.

REQUEST is JSON: {tasks: [{file, caches: [[name, shape, dtype], ...], prompts: [{tokens, limit, turns}], ends}]}; shapes
are of one row and no past. ANSWERS gets one line for each task. The loop is the model card's: caches go out of one step
and into the next by position.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino  # type: ignore[import-not-found]

TOP = 8

#: By default OpenVINO rounds float32 graphs to bfloat16 on processors that multiply it.
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY", "PERFORMANCE_HINT": "LATENCY"}


class Loop:
    """The state of one row: how many tokens it holds, and its caches."""

    def __init__(self, model: Any, caches: Sequence[Any]) -> None:
        self.request = model.create_infer_request()
        self.past = {name: np.zeros(shape, dtype) for name, shape, dtype in caches}
        self.held = 0

    def step(self, tokens: Sequence[int]) -> Any:
        """The logits [V] of the next token."""
        ids = np.array([tokens], np.int64)
        total = self.held + len(tokens)
        feeds = {
            "input_ids": ids,
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(self.held, total)[None],
        }
        logits, *presents = (np.array(value) for value in self.request.infer(feeds | self.past).to_tuple())
        self.past = dict(zip(self.past, presents, strict=True))
        self.held = total
        return logits[0, -1]


def continued(loop: Loop, fed: Sequence[int], limit: int, ends: Sequence[int]) -> dict[str, Any]:
    """Greedy tokens after `fed`, at most to one of `ends`, and the highest logits of every step."""
    tokens: list[int] = []
    top: list[list[list[float]]] = []
    while len(tokens) < limit:
        scores = loop.step(fed)
        tokens.append(int(scores.argmax()))
        top.append([[int(best), float(scores[best])] for best in np.argpartition(scores, -TOP)[-TOP:]])
        if tokens[-1] in ends:
            break
        fed = tokens[-1:]
    return {"tokens": tokens, "top": top}


def run_prompt(model: Any, task: dict[str, Any], prompt: dict[str, Any]) -> dict[str, Any]:
    loop = Loop(model, task["caches"])
    found = continued(loop, prompt["tokens"], prompt["limit"], task["ends"])
    turns = []
    for turn in prompt.get("turns", ()):
        # the last token was chosen and not fed: the next turn starts with it
        turns.append(continued(loop, [found["tokens"][-1], *turn["tokens"]], turn["limit"], task["ends"]))
    return {**found, "turns": turns}


def run_task(core: Any, task: dict[str, Any]) -> dict[str, Any]:
    model = core.compile_model(core.read_model(task["file"]), "CPU", EXACT)
    return {"runs": [run_prompt(model, task, prompt) for prompt in task["prompts"]]}


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answers = Path(sys.argv[2])

    def tell(answer: dict[str, Any]) -> None:
        with answers.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(answer) + "\n")

    core = openvino.Core()
    tell({"version": openvino.__version__.split("-")[0]})
    for number, task in enumerate(request["tasks"]):
        try:
            tell({"task": number, "value": run_task(core, task)})
        except Exception as error:
            tell({"task": number, "error": " ".join(str(error).split())[:600]})


if __name__ == "__main__":
    main()
