"""Traces for the tests of whole graphs: each is made once in a run, and handed out as a copy."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from graphs import SPEC
from lfm2export import contract, pipeline
from lfm2export import trace as tracing
from lfm2export.contract import LogitsMode
from lfm2export.spec import CONV, FULL_ATTENTION, ModelSpec
from lfm2export.trace import trace as trace_now
from lfm2export.weights import RECIPE

#: Everything that may differ, at once: an untied head, biases, L 4, heads that are not H / N wide.
ODD = replace(SPEC, tie_word_embeddings=False, conv_bias=True, conv_L_cache=4, head_dim=16, norm_eps=1e-3)

#: The kinds of the 350M's 16 layers.
KINDS_350M = tuple(FULL_ATTENTION if layer in (2, 5, 8, 10, 12, 14) else CONV for layer in range(16))


@cache
def _traced(spec: ModelSpec, logits: LogitsMode) -> ir.Model:
    return trace_now(spec, logits)


def traced(spec: ModelSpec, logits: LogitsMode = "last") -> ir.Model:
    """The unfused trace."""
    return _traced(spec, logits).clone()


@cache
def shared_fused(spec: ModelSpec, logits: LogitsMode = "last") -> ir.Model:
    """`pipeline.fused_graph`, from a trace that is made once; for those who do not change it, as `dtype_graph`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracing, "trace", traced)
        return pipeline.fused_graph(spec, logits)


def fused(spec: ModelSpec, logits: LogitsMode = "last") -> ir.Model:
    """A copy of it."""
    return shared_fused(spec, logits).clone()


def structure(model: ir.Model) -> dict[str, int]:
    """How often the graph holds each thing: what its outputs are, and every node by all that it is computed from.

    No name counts but those of inputs, outputs and weights; neither does the order of nodes.
    """
    known: dict[ir.Value | None, str] = {None: "absent"}
    for value in model.graph.inputs:
        known[value] = f"input {value.name} {value.dtype} {value.shape}"
    for value in model.graph.initializers.values():
        if RECIPE in value.meta:
            known[value] = str(value.meta[RECIPE])
        else:
            array = value.const_value.numpy()  # type: ignore[union-attr]
            known[value] = f"{array.dtype} {array.tolist()}"
    count: Counter[str] = Counter()
    for node in model.graph:
        attributes = sorted((name, str(attribute.value)) for name, attribute in node.attributes.items())
        content = f"{node.domain} {node.op_type} {attributes} {[known[value] for value in node.inputs]}"
        digest = hashlib.sha256(content.encode()).hexdigest()
        count[f"{node.op_type} {digest}"] += 1
        for place, value in enumerate(node.outputs):
            known[value] = f"{digest} {place}"
    for place, value in enumerate(model.graph.outputs):
        count[f"output {place} {value.name} {value.dtype} {value.shape} {known[value]}"] += 1
    return dict(count)


def feeds(
    spec: ModelSpec, tokens: Sequence[Sequence[int]], mask: NDArray[np.int64], past: Sequence[NDArray[Any]] | None
) -> dict[str, NDArray[Any]]:
    """The contract's inputs of one step: `tokens` [B, S], `mask` [B, T] with the new tokens, `past` None at the start.

    Positions count each row's valid tokens. What is overridable is no initializer yet before the passes are done.
    """
    ids = np.array(tokens, np.int64)
    positions = np.maximum(mask.cumsum(1) - 1, 0)[:, -ids.shape[1] :]
    held = contract.caches(spec, "float32")
    if past is None:
        sizes = {contract.BATCH: len(ids), contract.PAST: 0}
        past = [np.zeros([sizes.get(size, size) for size in cache.past.shape], np.float32) for cache in held]  # type: ignore[misc, call-overload]
    found = {contract.INPUT_IDS: ids, contract.ATTENTION_MASK: mask, contract.POSITION_IDS: positions}
    return found | {cache.past.name: value for cache, value in zip(held, past, strict=True)}
