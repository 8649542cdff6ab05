"""Runs in the environment of onnxruntime-genai: `python genai_worker.py REQUEST ANSWERS`. Imports nothing of ours.

REQUEST is JSON: {folder, tasks: [{overlay, prompts, turns, batch, limit, ...}]}; ANSWERS gets one line for each task.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import onnxruntime_genai as og  # type: ignore[import-not-found]

TOP = 8


def highest(row: Any) -> list[list[float]]:
    best = np.argpartition(row, -TOP)[-TOP:]
    return [[int(token), float(row[token])] for token in best]


def new_generator(model: Any, length: int, rows: int = 1) -> Any:
    params = og.GeneratorParams(model)
    params.set_search_options(
        max_length=length, do_sample=False, repetition_penalty=1.0, batch_size=rows, past_present_share_buffer=True
    )
    return og.Generator(model, params)


def continued(generator: Any, limit: int, rows: int = 1) -> tuple[list[list[int]], list[list[list[list[float]]]]]:
    """(tokens per row, highest logits per row) of at most `limit` steps."""
    tokens: list[list[int]] = [[] for _ in range(rows)]
    top: list[list[list[list[float]]]] = [[] for _ in range(rows)]
    for _ in range(limit):
        if generator.is_done():
            break
        logits = np.asarray(generator.get_logits())
        generator.generate_next_token()
        for row, token in enumerate(generator.get_next_tokens()):
            tokens[row].append(int(token))
            top[row].append(highest(logits[row, -1]))
    return tokens, top


def run_prompts(model: Any, prompts: Sequence[dict[str, Any]], length: int) -> list[dict[str, Any]]:
    found = []
    for prompt in prompts:
        generator = new_generator(model, length)
        generator.append_tokens(np.array(prompt["tokens"], np.int32))
        tokens, top = continued(generator, prompt["limit"])
        turns = []
        for turn in prompt.get("turns", ()):
            # the last sampled token has not been fed: the next turn starts with it
            generator.append_tokens(np.array([tokens[0][-1], *turn["tokens"]], np.int32))
            later, later_top = continued(generator, turn["limit"])
            turns.append({"tokens": later[0], "top": later_top[0]})
        found.append({"tokens": tokens[0], "top": top[0], "turns": turns})
    return found


def run_batch(model: Any, rows: Sequence[Sequence[int]], pad: int, limit: int, length: int) -> list[dict[str, Any]]:
    """Rows of uneven length, padded on the right, as this library wants them."""
    width = max(map(len, rows))
    padded = np.array([[*row, *[pad] * (width - len(row))] for row in rows], np.int32)
    generator = new_generator(model, length, len(rows))
    generator.append_tokens(padded)
    tokens, top = continued(generator, limit, len(rows))
    return [{"tokens": row, "top": best} for row, best in zip(tokens, top, strict=True)]


def run_task(folder: str, task: dict[str, Any]) -> dict[str, Any]:
    started = time.perf_counter()
    config = og.Config(folder)
    if task["overlay"] is not None:
        config.overlay(json.dumps(task["overlay"]))
    model = og.Model(config)
    tokenizer = og.Tokenizer(model)
    load_seconds = time.perf_counter() - started
    rendered = [
        [int(t) for t in tokenizer.encode(tokenizer.apply_chat_template(json.dumps(m), add_generation_prompt=True))]
        for m in task["chats"]
    ]
    return {
        "load_seconds": load_seconds,
        "rendered": rendered,
        "runs": run_prompts(model, task["prompts"], task["max_length"]),
        "batch": run_batch(model, task["batch"], task["pad"], task["limit"], task["max_length"]),
    }


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answers = Path(sys.argv[2])

    def tell(answer: dict[str, Any]) -> None:
        with answers.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(answer) + "\n")

    tell({"version": og.__version__, "onnxruntime": onnxruntime.__version__})
    for number, task in enumerate(request["tasks"]):
        try:
            tell({"task": number, "value": run_task(request["folder"], task)})
        except Exception as error:
            tell({"task": number, "error": " ".join(str(error).split())})


if __name__ == "__main__":
    main()
