"""What an ONNX file says about itself, read without its weights."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lfm2export.contract import Dim, Tensor
from lfm2export.errors import ArtifactError
from lfm2export.untrusted.escape import one_line
from lfm2export.untrusted.onnx_file import read_model, tensor_bytes

if TYPE_CHECKING:
    import onnx

#: Characters of a name, and kinds of operators, that are told.
MAX_NAME, MAX_OPERATORS = 200, 100
#: Accuracy levels that are told; the operator knows five.
MAX_LEVELS = 5

#: Role of a weight by its name, the first that matches; module names of transformers and of other exporters.
ROLES = (
    ("scales and zero points", re.compile(r"(scales?|zero_?points?|zp|zeros)(_\w+)?$")),
    ("norms", re.compile(r"norm")),
    ("embedding table", re.compile(r"embed_tokens|lm_head|embedding|\bhead\b")),
    ("attention", re.compile(r"attn|attention|[qkv]_proj|qkv")),
    ("short convolution", re.compile(r"conv")),
    ("feed forward", re.compile(r"feed_forward|mlp|\bw[123]\b|gate_|up_proj|down_proj")),
)
OTHER = "other"


@dataclass(frozen=True)
class Initializer:
    """One constant of the graph; `location` is the name of its data file as stated, None where the graph holds it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    role: str
    location: str | None
    end: int


@dataclass(frozen=True)
class GraphFacts:
    """`inputs` must be fed; `overridable` are initializers that may be. `nodes` counts every node;
    `nodes_without_weight_casts` leaves out the Casts whose input is an initializer. accuracy_levels: of the products of
    blocks, each level once.
    """

    opsets: Mapping[str, int]
    ir_version: int
    inputs: tuple[Tensor, ...]
    overridable: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    op_counts: Mapping[str, int]
    nodes: int
    nodes_without_weight_casts: int
    accuracy_levels: tuple[int, ...]
    initializers: tuple[Initializer, ...]

    @property
    def locations(self) -> tuple[str, ...]:
        """Names of the data files that the graph refers to, in the order of their numbers."""
        names = {found.location for found in self.initializers if found.location is not None}
        return tuple(sorted(names, key=lambda name: (len(name), name)))


def read_graph(path: Path) -> GraphFacts:
    """The facts of the ONNX file at `path`. Names are as they can be printed: one line, at most :data:`MAX_NAME` long.

    Raises:
        ArtifactError: there is no such file, or it is no ONNX model, or a damaged one.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist; build it again")
    model = read_model(path, weights=False)
    nodes = list(_nodes(model.graph, frozenset()))
    constants = {tensor.name for tensor in model.graph.initializer}
    counts = Counter(_operator(node) for node, _ in nodes)
    common = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MAX_OPERATORS])
    if len(counts) > MAX_OPERATORS:
        common[f"({len(counts) - MAX_OPERATORS} other kinds)"] = len(nodes) - sum(common.values())
    return GraphFacts(
        opsets=dict(sorted((_name(opset.domain), opset.version) for opset in model.opset_import)),
        ir_version=model.ir_version,
        inputs=tuple(_tensor(value) for value in model.graph.input if value.name not in constants),
        overridable=tuple(_tensor(value) for value in model.graph.input if value.name in constants),
        outputs=tuple(_tensor(value) for value in model.graph.output),
        op_counts=common,
        nodes=len(nodes),
        nodes_without_weight_casts=len(nodes) - sum(casts for _, casts in nodes),
        accuracy_levels=_accuracy_levels(node for node, _ in nodes),
        initializers=tuple(_initializer(tensor) for tensor in model.graph.initializer),
    )


def _nodes(graph: onnx.GraphProto, outer: frozenset[str]) -> Iterator[tuple[onnx.NodeProto, bool]]:
    """(node, whether it casts an initializer) of a graph and of those within it; `outer`: initializers around it."""
    constants = outer | {tensor.name for tensor in graph.initializer} if graph.initializer else outer
    for node in graph.node:
        yield node, node.op_type == "Cast" and len(node.input) > 0 and node.input[0] in constants
        for attribute in node.attribute:
            for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _nodes(inner, constants)


def _accuracy_levels(nodes: Iterable[onnx.NodeProto]) -> tuple[int, ...]:
    """A product that says none has level 0."""
    levels = {
        next((entry.i for entry in node.attribute if entry.name == "accuracy_level"), 0)
        for node in nodes
        if node.op_type == "MatMulNBits"
    }
    return tuple(sorted(levels)[:MAX_LEVELS])


def _operator(node: onnx.NodeProto) -> str:
    return _name(f"{node.domain}.{node.op_type}" if node.domain else node.op_type)


def role_of(name: str) -> str:
    """The role of the weight called `name` (:data:`ROLES`)."""
    return next((role for role, pattern in ROLES if pattern.search(name)), OTHER)


def _name(text: str) -> str:
    return one_line(text[:MAX_NAME])


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    held = value.type.tensor_type
    shape: list[Dim] = []
    for size in held.shape.dim:
        shape.append(size.dim_value if size.HasField("dim_value") else _name(size.dim_param) or "?")
    return Tensor(_name(value.name), _dtype(held.elem_type), tuple(shape))


def _dtype(code: int) -> str:
    from onnx import TensorProto

    name = TensorProto.DataType.Name(code).lower() if code in TensorProto.DataType.values() else "unknown"
    return {"float": "float32", "undefined": "unknown"}.get(name, name)


def _initializer(tensor: onnx.TensorProto) -> Initializer:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location")
    size = tensor_bytes(list(tensor.dims), tensor.data_type)
    name = _name(tensor.name)
    return Initializer(
        name=name,
        dtype=_dtype(tensor.data_type),
        shape=tuple(tensor.dims),
        bytes=size,
        role=role_of(name),
        location=location,
        end=int(entries.get("offset", 0)) + int(entries.get("length", size)) if location is not None else 0,
    )
