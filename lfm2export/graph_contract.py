"""Whether a graph's inputs and outputs are the contract's, to the letter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lfm2export import contract
from lfm2export.errors import GraphError
from lfm2export.spec import ModelSpec

if TYPE_CHECKING:
    import onnx_ir as ir


def check_contract(
    model: ir.Model,
    spec: ModelSpec,
    dtype: str,
    logits: contract.LogitsMode,
    kv: contract.KvCache = "native",
) -> None:
    """Names, order, types and axes of inputs and outputs are the contract's.

    Raises:
        GraphError: they are not; the message names the first that differs.
    """
    wanted = contract.contract(spec, contract.cache_dtype(dtype), logits, kv)
    for kind, values, tensors in (
        ("input", model.graph.inputs, (*wanted.inputs, *wanted.overridable)),
        ("output", model.graph.outputs, wanted.outputs),
    ):
        got = [(v.name, v.dtype.name if v.dtype else None, tuple(str(d) for d in v.shape or ())) for v in values]
        want = [(t.name, contract.ONNX_TYPES[t.dtype], tuple(str(d) for d in t.shape)) for t in tensors]
        for mine, theirs in zip(got, want, strict=False):
            if mine != theirs:
                raise GraphError(f"{dtype}: {kind} is {mine}, the contract says {theirs}")
        if len(got) != len(want):
            raise GraphError(f"{dtype}: {len(got)} {kind}s, the contract says {len(want)}")
