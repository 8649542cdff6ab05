"""The pipeline: checkpoint -> spec -> trace -> passes -> weight plan -> stream to disk -> package, as one function."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lfm2export import contract
from lfm2export.errors import GraphError
from lfm2export.recipes import Options
from lfm2export.spec import ModelSpec

if TYPE_CHECKING:
    import onnx_ir as ir


def fused_graph(spec: ModelSpec, logits: contract.LogitsMode) -> ir.Model:
    """The float32 graph of `spec`, traced and fused; every dtype starts from it.

    Raises:
        GraphError: the trace, or a pass, is not what the spec demands.
    """
    from lfm2export import passes
    from lfm2export.passes import cleanup
    from lfm2export.stack import stack, template_spec
    from lfm2export.trace import trace

    model = trace(template_spec(spec), logits)
    cleanup.fold(model)
    stack(model, spec)
    cleanup.merge(model)
    passes.run(model, spec, passes.fusions(logits))
    return model


def dtype_graph(fused: ir.Model, spec: ModelSpec, dtype: str, options: Options) -> ir.Model:
    """The graph of one file: a copy of the fused graph after the precision passes of `dtype`, held to the contract."""
    from lfm2export import passes
    from lfm2export.recipes import precision_passes

    model = fused.clone()
    passes.run(model, spec, precision_passes(dtype, options))
    check_contract(model, spec, dtype, options.logits)
    return model


def check_contract(model: ir.Model, spec: ModelSpec, dtype: str, logits: contract.LogitsMode) -> None:
    """Names, order, types and axes of inputs and outputs are the contract's.

    Raises:
        GraphError: they are not; the message names the first that differs.
    """
    wanted = contract.contract(spec, contract.cache_dtype(dtype), logits)
    for kind, values, tensors in (
        ("input", model.graph.inputs, wanted.inputs),
        ("output", model.graph.outputs, wanted.outputs),
    ):
        got = [(v.name, v.dtype.name if v.dtype else None, tuple(str(d) for d in v.shape or ())) for v in values]
        want = [(t.name, contract.ONNX_TYPES[t.dtype], tuple(str(d) for d in t.shape)) for t in tensors]
        for mine, theirs in zip(got, want, strict=False):
            if mine != theirs:
                raise GraphError(f"{dtype}: {kind} is {mine}, the contract says {theirs}; this is a bug of lfm2export")
        if len(got) != len(want):
            raise GraphError(f"{dtype}: {len(got)} {kind}s, the contract says {len(want)}; this is a bug of lfm2export")
