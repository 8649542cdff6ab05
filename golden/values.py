"""Logits on fixed prompts, teacher-forced, and their comparison with stored ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfm2export.text.tokenizer import ChatTokenizer

#: name -> (as a conversation?, text).
PROMPTS = {
    "question": (True, "What is the capital of France?"),
    "plain": (False, "The module provides functions for reading and writing files. In order to"),
    "unicode": (True, "Übersetze: 水 is water. 🙂"),
}

STEPS = 12
TOP = 5

#: How far a logit may lie from the stored one, in logits. Another processor sums in another order, and rounds the
#: activations of q8, q4 and q4f16 to other codes: an eighth of what 4-bit weights themselves change.
TOLERANCES = {"reference": 1e-3, "fp32": 1e-3, "fp16": 0.05, "q8": 0.15, "q4": 0.15, "q4f16": 0.2}

Rows = NDArray[np.float32]


def prompt_tokens(folder: Path) -> dict[str, list[int]]:
    """Every prompt as tokens of the tokenizer in `folder`."""
    tokenizer = ChatTokenizer(folder)
    return {
        name: tokenizer.encode_chat([{"role": "user", "content": text}]) if chat else tokenizer.encode(text)
        for name, (chat, text) in PROMPTS.items()
    }


def greedy(model: Any, prompt: Sequence[int]) -> tuple[list[int], Rows]:
    """The likeliest STEPS tokens after `prompt`, and the logits [STEPS, V] that chose them."""
    return _walk(model, prompt, None)


def forced(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> Rows:
    """The logits [STEPS, V] when `answer` is fed whatever they prefer."""
    return _walk(model, prompt, answer)[1]


def _walk(model: Any, prompt: Sequence[int], answer: Sequence[int] | None) -> tuple[list[int], Rows]:
    state, feed, rows, tokens = model.new_state(1), list(prompt), [], []
    for step in range(STEPS):
        logits, state = model.step(np.array([feed], np.int64), state)
        rows.append(np.array(logits[0, -1], np.float32))
        tokens.append(int(np.argmax(rows[-1])) if answer is None else int(answer[step]))
        feed = tokens[-1:]
    return tokens, np.stack(rows)


def highest(rows: Rows) -> list[str]:
    """One line a step: the TOP likeliest tokens as `token:logit`, the likeliest first."""
    lines = []
    for row in rows:
        best = np.argsort(-row, kind="stable")[:TOP]
        lines.append(" ".join(f"{token}:{row[token]:.4f}" for token in best))
    return lines


def differences(name: str, stored: Mapping[str, Any], rows: Mapping[str, Rows]) -> list[str]:
    """Where `rows` are not the stored logits: one line for each prompt, at the first step that differs."""
    limit = TOLERANCES[name]
    found = []
    for prompt, lines in stored.items():
        got = rows.get(prompt)
        if got is None or len(got) != len(lines):
            found.append(f"{name}: prompt {prompt!r} has other steps than the golden")
            continue
        problems = (_difference(line, row, limit) for line, row in zip(lines, got, strict=True))
        first = next(((step, problem) for step, problem in enumerate(problems) if problem), None)
        if first is not None:
            found.append(f"{name}: prompt {prompt!r}, step {first[0]}: {first[1]}")
    return found


def _difference(line: str, row: Rows, limit: float) -> str | None:
    stored = [(int(token), float(logit)) for token, logit in (entry.split(":") for entry in line.split())]
    if not np.isfinite(row).all():
        return "logits are not finite"
    token, logit = max(stored, key=lambda entry: abs(float(row[entry[0]]) - entry[1]))
    if abs(float(row[token]) - logit) > limit:
        return f"token {token} has the logit {row[token]:.4f}, the golden {logit:.4f}, tolerance {limit}"
    best, margin = int(np.argmax(row)), stored[0][1] - stored[1][1]
    if best != stored[0][0] and margin > 2 * limit:
        return f"token {best} comes first, in the golden {stored[0][0]}"
    return None
