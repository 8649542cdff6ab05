"""Fused graphs kept in the user's cache: the trace is ten seconds of a build, and follows from few things.

    key   = sha256 of: spec, kind of logits, versions of the libraries that trace and fuse, every source of this package
    entry = a line of JSON (the key, and what each weight is made of), then the graph as an ONNX file without weights

An entry is held to what is known without it: its key, a graph that :mod:`lfm2export.untrusted.onnx_file` lets pass,
weights that this spec has, inputs and outputs of the contract. One that fails is as if it were not there, and the next
build puts a good one in its place. A graph that was kept gives the same bytes as the traced one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import lfm2export
from lfm2export.contract import LogitsMode
from lfm2export.errors import ArtifactError, GraphError
from lfm2export.spec import ModelSpec
from lfm2export.untrusted.json_reader import parse_json
from lfm2export.untrusted.onnx_file import scan
from lfm2export.untrusted.records import Mismatch, decode
from lfm2export.user_cache import cache_folder, read_entry, write_entry
from lfm2export.weights import RECIPE, Recipe

if TYPE_CHECKING:
    import onnx_ir as ir

KIND, SUFFIX = "graphs", ".graph"

#: Libraries that have a say in the graph.
LIBRARIES = ("ml_dtypes", "numpy", "onnx", "onnx-ir", "onnxscript", "torch", "transformers")

#: Where a kept graph says that its weights are; nothing is ever read from there.
NOWHERE = "weights"

WHAT = "a cached graph"


@dataclass(frozen=True)
class _Weight:
    """A :class:`~lfm2export.weights.Recipe` of a float32 initializer."""

    name: str
    parts: tuple[str, ...]
    shape: tuple[int, ...]
    transpose: bool


@dataclass(frozen=True)
class _Head:
    key: str
    weights: tuple[_Weight, ...]


def load_graph(spec: ModelSpec, logits: LogitsMode) -> ir.Model | None:
    """The fused graph of `spec` as it was kept; None where there is none that holds good."""
    key, path = _place(spec, logits)
    if path is None or (content := read_entry(path)) is None:
        return None
    try:
        return unpacked(content, key, spec, logits)
    except (ArtifactError, GraphError):
        return None


def keep_graph(spec: ModelSpec, logits: LogitsMode, model: ir.Model) -> None:
    """Keep the fused graph of `spec` for the next build, where the user has a cache that can be written."""
    key, path = _place(spec, logits)
    if path is not None:
        write_entry(path, packed(model, key))


def graph_key(spec: ModelSpec, logits: LogitsMode) -> str:
    """What the graph follows from, as 64 hexadecimal digits.

    Raises:
        PackageNotFoundError: a library is there that was not installed, so that its version is not known.
    """
    versions = {name: metadata.version(name) for name in LIBRARIES}
    known = [asdict(spec), logits, versions, platform.python_version(), source_hash()]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def source_hash() -> str:
    """Of every Python file of this package but the tools that are installed into its folder."""
    root = Path(lfm2export.__file__).parent
    found = hashlib.sha256()
    for parent, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name[0] not in "._" and name != "node_modules")
        for name in sorted(name for name in names if name.endswith(".py")):
            path = Path(parent, name)
            data = path.read_bytes()
            found.update(f"{path.relative_to(root).as_posix()} {len(data)}\n".encode())
            found.update(data)
    return found.hexdigest()


def _place(spec: ModelSpec, logits: LogitsMode) -> tuple[str, Path | None]:
    """(key, path of the entry); the path is None where nothing can be kept."""
    folder = cache_folder(KIND)
    try:
        key = graph_key(spec, logits)
    except (metadata.PackageNotFoundError, OSError):
        return "", None
    return key, folder / f"{key}{SUFFIX}" if folder is not None else None


def packed(model: ir.Model, key: str) -> bytes:
    """The entry of `model`, a fused graph, under `key`."""
    import onnx_ir as ir

    copy = model.clone()
    weights = []
    for name, value in copy.graph.initializers.items():
        if RECIPE not in value.meta:
            continue
        recipe: Recipe = value.meta[RECIPE]
        if recipe.dtype != "FLOAT" or recipe.block is not None or recipe.component != "values":
            raise GraphError(f"the fused graph has the weight {name} as {recipe}, expected float32 values")
        weights.append(_Weight(name, recipe.parts, recipe.shape, recipe.transpose))
        value.const_value = ir.ExternalTensor(
            NOWHERE, None, None, ir.DataType.FLOAT, shape=ir.Shape(recipe.shape), name=name
        )
    head = json.dumps(asdict(_Head(key, tuple(weights))), sort_keys=True)
    return head.encode() + b"\n" + bytes(ir.to_proto(copy).SerializeToString(deterministic=True))


def unpacked(content: bytes, key: str, spec: ModelSpec, logits: LogitsMode) -> ir.Model:
    """The graph of an entry.

    Raises:
        ArtifactError: it is damaged, of another key, or its weights are not those of `spec`.
        GraphError: its inputs and outputs are not the contract's.
    """
    import onnx
    import onnx_ir as ir

    from lfm2export.graph_contract import check_contract

    line, _, graph = content.partition(b"\n")
    head = _head(line)
    if head.key != key:
        raise ArtifactError(f"{WHAT} is of another key, expected {key}; build again")
    external = {tensor.name for tensor in scan(graph, WHAT)}
    weights = {weight.name: weight for weight in head.weights}
    if external != set(weights) or len(weights) != len(head.weights):
        raise ArtifactError(f"{WHAT} names other weights than it has; build again")
    try:
        model = ir.from_proto(onnx.load_model_from_string(graph))
    except Exception as problem:  # protobuf's and onnx_ir's own, of many kinds, for a graph that contradicts itself
        raise ArtifactError(f"{WHAT} cannot be read; build again") from problem
    tensors = spec.source_tensors()
    for value in model.graph.initializers.values():
        weight = weights.get(str(value.name))
        if weight is not None:
            value.meta[RECIPE] = _recipe(weight, value, tensors)
            value.const_value = None
    check_contract(model, spec, "fp32", logits)
    return model


def _head(line: bytes) -> _Head:
    try:
        found: _Head = decode(parse_json(line, WHAT, ArtifactError, "build again"), _Head)
    except Mismatch as problem:
        raise ArtifactError(f"{WHAT}: {problem}; build again") from problem
    return found


def _recipe(weight: _Weight, value: ir.Value, tensors: Mapping[str, tuple[int, ...]]) -> Recipe:
    """What `weight` says, where the source has such parts and the graph such a value."""
    parts = [tensors.get(part) for part in weight.parts]
    size = sum(math.prod(shape) for shape in parts if shape is not None)
    stated = value.const_value.shape if value.const_value is not None else None
    if not parts or None in parts or size != math.prod(weight.shape) or stated != weight.shape:
        raise ArtifactError(f"{WHAT} has a weight that this checkpoint does not have; build again")
    return Recipe(weight.parts, weight.shape, transpose=weight.transpose)
