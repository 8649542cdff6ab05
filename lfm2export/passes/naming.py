"""Contract naming: nodes and values are called after the module they come from, and nothing else is left on them.

    val_399 = MatMul(val_298, ...)            ->      /model/layers.0/conv/in_proj/MatMul_output_0 = MatMul(...)
    i64[1] "val_50"                                   the same constant, called by its content

Inputs and outputs keep the contract's names and symbols. Shapes of intermediate values are dropped: they hold the
symbols of the tracer, and no runtime needs them.
"""

from __future__ import annotations

import re
from collections import Counter

import onnx_ir as ir

from lfm2export.passes.matching import Firing
from lfm2export.spec import ModelSpec
from lfm2export.weights import NAMED, RECIPE, SCOPES

_SCOPE = re.compile(r"'((?:model|lm_head)[^']*)'")


def expected(spec: ModelSpec) -> int:
    return 1


def fuse(model: ir.Model, spec: ModelSpec) -> Firing:
    graph = model.graph
    seen: Counter[str] = Counter()
    for node in ir.traversal.RecursiveGraphIterator(graph):
        node.name = _unique(f"/{_path(node)}/{node.op_type}".replace("//", "/"), seen)
        for number, value in enumerate(node.outputs):
            if not value.is_graph_output():
                # Optional outputs that a pass left out are unnamed already; any other is computed and must have a name.
                value.name = "" if value.name == "" else f"{node.name}_output_{number}"
                value.shape, value.type = None, None
        node.metadata_props.clear()
        node.doc_string = None
    named = {name: RECIPE in value.meta or NAMED in value.meta for name, value in graph.initializers.items()}
    constants = [value for name, value in graph.initializers.items() if not named[name]]
    weights = [value for name, value in graph.initializers.items() if named[name]]
    graph.initializers.clear()
    for value in weights:
        value.metadata_props.clear()
        graph.initializers.add(value)
    for value in constants:
        data = value.const_value.numpy()  # type: ignore[union-attr]
        content = "_".join(str(item) for item in data.reshape(-1)[:6].tolist())
        value.name = _unique(f"const/{data.dtype}{list(data.shape)}/{content}".replace(" ", ""), seen)
        value.const_value = ir.tensor(data, name=value.name)
        value.metadata_props.clear()
        graph.initializers.add(value)
    for value in (*graph.inputs, *graph.outputs):
        value.metadata_props.clear()
    graph.name = "lfm2"
    graph.metadata_props.clear()
    graph.doc_string = None
    return Firing(count=1)


def _path(node: ir.Node) -> str:
    scopes = _SCOPE.findall(node.metadata_props.get(SCOPES, ""))
    modules = [scope for scope in scopes if "." in scope or scope == "lm_head"]
    return (
        modules[-1].replace("model.model.", "model.").replace(".", "/").replace("layers/", "layers.") if modules else ""
    )


def _unique(name: str, seen: Counter[str]) -> str:
    seen[name] += 1
    return name if seen[name] == 1 else f"{name}_{seen[name] - 1}"
