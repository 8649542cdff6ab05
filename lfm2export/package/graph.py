"""What an ONNX file says about itself, read without its weights."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfm2export.contract import Dim, Tensor
from lfm2export.errors import ArtifactError

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
    """One constant of the graph; `location` is the bare name of its data file, or None if the graph holds it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    role: str
    location: str | None
    end: int


@dataclass(frozen=True)
class GraphFacts:
    """`nodes` counts every node; `nodes_without_weight_casts` leaves out the Casts whose input is an initializer."""

    opsets: Mapping[str, int]
    ir_version: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    op_counts: Mapping[str, int]
    nodes: int
    nodes_without_weight_casts: int
    initializers: tuple[Initializer, ...]

    @property
    def locations(self) -> tuple[str, ...]:
        """Names of the data files that the graph refers to, in the order of their numbers."""
        names = {found.location for found in self.initializers if found.location is not None}
        return tuple(sorted(names, key=lambda name: (len(name), name)))


def read_graph(path: Path) -> GraphFacts:
    """The facts of the ONNX file at `path`.

    Raises:
        ArtifactError: there is no such file, or it is no ONNX model.
    """
    import onnx_ir as ir

    if not path.is_file():
        raise ArtifactError(f"{path} does not exist; build it again")
    try:
        model = ir.load(path)
    except Exception as error:  # protobuf and onnx_ir raise many kinds for a damaged file
        line = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{path} is not a readable ONNX model ({line}); build it again") from error
    nodes = list(model.graph.all_nodes())
    casts = sum(
        1 for node in nodes if node.op_type == "Cast" and node.inputs[0] is not None and node.inputs[0].is_initializer()
    )
    counts = Counter(node.op_type if not node.domain else f"{node.domain}.{node.op_type}" for node in nodes)
    return GraphFacts(
        opsets=dict(sorted(model.graph.opset_imports.items())),
        ir_version=int(model.ir_version or 0),
        inputs=tuple(_tensor(value) for value in model.graph.inputs),
        outputs=tuple(_tensor(value) for value in model.graph.outputs),
        op_counts=dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        nodes=len(nodes),
        nodes_without_weight_casts=len(nodes) - casts,
        initializers=tuple(_initializer(value) for value in model.graph.initializers.values()),
    )


def role_of(name: str) -> str:
    """The role of the weight called `name` (:data:`ROLES`)."""
    return next((role for role, pattern in ROLES if pattern.search(name)), OTHER)


def _tensor(value: Any) -> Tensor:
    dtype = value.dtype.name.lower() if value.dtype is not None else "unknown"
    shape: list[Dim] = []
    for size in value.shape if value.shape is not None else ():
        shape.append(size if isinstance(size, int) else str(size))
    return Tensor(str(value.name), {"float": "float32"}.get(dtype, dtype), tuple(shape))


def _initializer(value: Any) -> Initializer:
    import onnx_ir as ir

    tensor = value.const_value
    if tensor is None:
        raise ArtifactError(f"initializer {value.name} has no value; build the file again")
    external = isinstance(tensor, ir.ExternalTensor)
    return Initializer(
        name=str(value.name),
        dtype={"float": "float32"}.get(tensor.dtype.name.lower(), tensor.dtype.name.lower()),
        shape=tuple(int(size) for size in tensor.shape),
        bytes=int(tensor.nbytes),
        role=role_of(str(value.name)),
        location=str(tensor.location) if external else None,
        end=int(tensor.offset or 0) + int(tensor.length or tensor.nbytes) if external else 0,
    )
