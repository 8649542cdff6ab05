"""onnxruntime-genai's model builder on a checkpoint: its recipes, what a run costs, and its artifact behind a score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.peers.llama import Route
from benchmarks.peers.locate import PeerError, environment, python_of
from benchmarks.processes import Usage, measure
from lfm2export.steps import Logits
from lfm2export.verify.expected import ExpectedChunk

Recipe = Literal["fp32", "rtn", "k_quant", "vendor", "mixed"]

#: --precision and --extra_options. vendor: what Liquid AI's published files were made with, in the spelling of 0.18.
#: mixed: its formats with plain rounding, in a tenth of the time; the same graph, so of the same speed.
BLOCKS = ("accuracy_level=4", "block_size=32")
RECIPES: dict[Recipe, tuple[str, tuple[str, ...]]] = {
    "fp32": ("fp32", ()),
    "rtn": ("int4", BLOCKS),
    "k_quant": ("int4", (*BLOCKS, "algo_config=k_quant")),
    "vendor": (
        "int4",
        (*BLOCKS, "algo_config=k_quant", "matmul_mixed_precision=last_matmul:int8,mixed_layers:int8"),
    ),
    "mixed": (
        "int4",
        (
            *BLOCKS,
            "algo_config=rtn",
            "is_symmetric=false",
            "matmul_mixed_precision=last_matmul:int8,mixed_layers:int8",
        ),
    ),
}


def arguments(source: Path, out: Path, recipe: Recipe) -> list[str]:
    """The builder's command line, after its Python."""
    precision, options = RECIPES[recipe]
    given = ["-m", str(source), "-i", str(source), "-o", str(out), "-p", precision, "-e", "cpu"]
    return ["-m", "onnxruntime_genai.models.builder", *given, *(["--extra_options", *options] if options else [])]


def build(source: Path, out: Path, recipe: Recipe) -> Usage:
    """Build `source` into `out`; what the builder's processes cost.

    Raises:
        PeerError: it is not installed, or failed.
    """
    command = [str(python_of("genai")), *arguments(source.resolve(), out.resolve(), recipe)]
    out.mkdir(parents=True, exist_ok=True)
    used = measure(command, cwd=out, env=environment())
    if used.exit_code or not (out / "model.onnx").is_file():
        raise PeerError(f"{' '.join(command)} exited with {used.exit_code}: {used.output[-2000:]}")
    return used


class GenaiScore:
    """The builder's model.onnx behind `verify.text.Score`, run by the tool's own onnxruntime.

    States are whatever the graph has besides ids, mask and positions; outputs after the logits are their successors in
    the same order. Keys and values start at length 0, conv states as zeros.
    """

    def __init__(self, folder: Path, route: Route, *, threads: int = 2) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self.route = route
        config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
        self.axes = {
            "batch_size": 1,
            "past_sequence_length": 0,
            "kv_cache_dim": config["model"]["decoder"]["head_size"],
        }
        plain = ("input_ids", "attention_mask", "position_ids")
        self.states = [value for value in self.session.get_inputs() if value.name not in plain]
        self.positions = any(value.name == "position_ids" for value in self.session.get_inputs())

    def __call__(self, chunk: ExpectedChunk) -> Logits:
        return self.logits(chunk.tokens, chunk.first)

    def logits(self, tokens: tuple[int, ...], first: int) -> Logits:
        """float32 [len(tokens) - 1 - first, V]: positions first .. len(tokens) - 2."""
        states = [
            np.zeros([self.axes.get(axis, axis) for axis in value.shape], _numpy(value.type)) for value in self.states
        ]
        head = tokens[:-1] if self.route == "prefill" else tokens[: first + 1]
        rows, done = [], 0
        for part in (head, *((token,) for token in tokens[len(head) : -1])):
            new, states = self._step(part, done, states)
            rows.append(new)
            done += len(part)
        result: Logits = np.concatenate([rows[0][first:], *rows[1:]])
        return result

    def _step(self, tokens: tuple[int, ...], past: int, states: list[Any]) -> tuple[Any, list[Any]]:
        """(logits [S, V], states after `tokens`)."""
        feeds: dict[str, Any] = {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": np.ones((1, past + len(tokens)), np.int64),
        }
        if self.positions:
            feeds["position_ids"] = np.arange(past, past + len(tokens), dtype=np.int64)[None]
        feeds |= {value.name: state for value, state in zip(self.states, states, strict=True)}
        logits, *after = self.session.run(None, feeds)
        return np.asarray(logits, np.float32)[0], after


def _numpy(kind: str) -> type[np.generic]:
    return np.float16 if "float16" in kind else np.float32
