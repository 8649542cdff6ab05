"""The passes: small, named, ordered. Each lives in a file of its own, draws its graph before and after, and declares
how
often it must fire for a given spec; fewer is an error, for a fusion that misses in silence is a slow or wrong artifact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from lfm2export.contract import MICROSOFT, MICROSOFT_OPSET, LogitsMode
from lfm2export.errors import GraphError
from lfm2export.passes import (
    attention,
    cleanup,
    last_token,
    packing,
    projections,
    qk_norm,
    rms_norm,
    rotary,
    short_conv,
    skip_norm,
    swiglu,
)
from lfm2export.passes.matching import Firing, remove_dead
from lfm2export.spec import ModelSpec


@dataclass(frozen=True)
class Pass:
    """One rewrite: `fuse(model, spec)` does it in place, `expected(spec)` says how often it must fire."""

    name: str
    fuse: Callable[[ir.Model, ModelSpec], Firing]
    expected: Callable[[ModelSpec], int]


#: What makes the traced graph fast, whatever the dtype. The order matters: each reads what those before it made.
_FUSIONS = (
    Pass("rms_norm", rms_norm.fuse, rms_norm.expected),
    Pass("rotary", rotary.fuse, rotary.expected),
    Pass("attention", attention.fuse, attention.expected),
    Pass("short_conv", short_conv.fuse, short_conv.expected),
    Pass("swiglu", swiglu.fuse, swiglu.expected),
    Pass("projections", projections.fuse, projections.expected),
    Pass("packing", packing.fuse, packing.expected),
    Pass("qk_norm", qk_norm.fuse, qk_norm.expected),
    Pass("skip_norm", skip_norm.fuse, skip_norm.expected),
)
_LAST_TOKEN = (Pass("last_token", last_token.fuse, last_token.expected),)


def fusions(logits: LogitsMode) -> tuple[Pass, ...]:
    """The passes that every dtype shares."""
    return (*_FUSIONS, *_LAST_TOKEN) if logits == "last" else _FUSIONS


def run(model: ir.Model, spec: ModelSpec, passes: Sequence[Pass]) -> dict[str, int]:
    """Run `passes` in order on `model`, in place; returns how often each fired.

    Raises:
        GraphError: a pass fired less or more often than the spec says; the message holds its refusals.
    """
    counts = {}
    for step in passes:
        firing = step.fuse(model, spec)
        wanted = step.expected(spec)
        if firing.count != wanted:
            reasons = "; ".join(firing.refusals[:3]) or "no candidate was found"
            raise GraphError(
                f"pass {step.name} fired {firing.count} times, expected {wanted}: {reasons}. "
                "The installed transformers or torch may trace another graph than the pinned versions; install those"
            )
        counts[step.name] = firing.count
        remove_dead(model)
    cleanup.merge(model)
    # Folding drops imports of domains that it sees unused: the fused operators' own comes with them.
    model.opset_imports[MICROSOFT] = MICROSOFT_OPSET
    return counts
