"""What an artifact folder holds: contract, operators, bytes by role, bits per weight, hashes. No weight is read, but
for hashing. Any LFM2 ONNX folder of this layout can be inspected; one without a manifest just has no hashes to check.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lfm2export import contract
from lfm2export.contract import LogitsMode, Tensor
from lfm2export.errors import ArtifactError
from lfm2export.ownership import added_files
from lfm2export.package.graph import OTHER, ROLES, GraphFacts, read_graph
from lfm2export.package.manifest import Problem, check_manifest, read_manifest
from lfm2export.progress import Progress, silent
from lfm2export.spec import ModelSpec, parse_spec, read_config
from lfm2export.untrusted.escape import one_line
from lfm2export.untrusted.onnx_file import data_path
from lfm2export.untrusted.paths import find_file, is_plain_path, shown

#: Problems of one file that are told.
MAX_PROBLEMS = 50


@dataclass(frozen=True)
class DataFile:
    """One chunk of external data; `bytes` is None if it is missing."""

    name: str
    bytes: int | None


@dataclass(frozen=True)
class ModelInspection:
    """One model file. `problems` are one line each; none means that it keeps the contract and its data is there.

    logits: "last" or "all", or None where the output is neither.
    accuracy_levels: of products of blocks; 4 lets kernels round activations to 8 bits.
    nodes_without_weight_casts: nodes that are not a Cast of an initializer.
    bytes: graph and data files. bits_per_weight: of the data files alone, per parameter of the source model.
    bytes_by_role, bytes_by_dtype: of the initializers, largest first.
    """

    dtype: str
    file: str
    logits: LogitsMode | None
    opsets: Mapping[str, int]
    ir_version: int
    nodes: int
    nodes_without_weight_casts: int
    op_counts: Mapping[str, int]
    accuracy_levels: tuple[int, ...]
    bytes: int
    bits_per_weight: float
    bytes_by_role: Mapping[str, int]
    bytes_by_dtype: Mapping[str, int]
    chunks: tuple[DataFile, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """A whole folder. `hashes` are the manifest's differences; None where there is no build.json to compare with."""

    folder: Path
    parameters: int
    models: tuple[ModelInspection, ...]
    hashes: tuple[Problem, ...] | None
    manifest: Mapping[str, Any] | None

    @property
    def good(self) -> bool:
        """No contract problem and no damaged or missing file. Files that the build did not write are no damage."""
        damaged = any(problem.kind != "extra" for problem in self.hashes or ())
        return not damaged and not any(model.problems for model in self.models)

    def to_dict(self) -> dict[str, Any]:
        """JSON values only; the folder by its name."""
        return {
            "schema_version": 1,
            "folder": self.folder.name,
            "good": self.good,
            "parameters": self.parameters,
            "models": [asdict(model) for model in self.models],
            "hashes": None if self.hashes is None else [asdict(problem) for problem in self.hashes],
            "source": None if self.manifest is None else self.manifest.get("source"),
        }


def inspect_artifact(folder: Path, *, hashes: bool = True, progress: Progress = silent) -> Inspection:
    """Inspect every model file of `folder`.

    Args:
        hashes: False skips reading the data files; `Inspection.hashes` is then None.

    Raises:
        SourceError: the folder or its config.json is missing, or is no LFM2's.
        ArtifactError: there is no model file, or one that is no ONNX model, or a damaged manifest.
    """
    spec = parse_spec(read_config(folder))
    files = {dtype: find_file(folder, f"onnx/{name}", ArtifactError) for dtype, name in contract.MODEL_FILES.items()}
    found = {dtype: path for dtype, path in files.items() if path is not None}
    if not found:
        names = ", ".join(contract.MODEL_FILES.values())
        raise ArtifactError(f"{folder} has no model file in onnx/, expected one of {names}; give the folder of a build")
    manifest = read_manifest(folder)
    return Inspection(
        folder=folder.resolve(),
        parameters=spec.num_parameters,
        models=tuple(inspect_model(path, dtype, spec, folder) for dtype, path in found.items()),
        hashes=_hash_problems(folder, progress) if hashes and manifest is not None else None,
        manifest=manifest,
    )


def _hash_problems(folder: Path, progress: Progress) -> tuple[Problem, ...]:
    """What differs from build.json; what commands of this tool add later is no difference."""
    own = added_files()
    return tuple(
        problem for problem in check_manifest(folder, progress) if problem.kind != "extra" or problem.file not in own
    )


def inspect_model(path: Path, dtype: str, spec: ModelSpec, folder: Path) -> ModelInspection:
    """Inspect one model file of the artifact `folder`, that should be the `dtype` graph of `spec`.

    Raises:
        ArtifactError: it is no ONNX model.
    """
    facts = read_graph(path)
    logits = logits_mode(facts.outputs)
    sizes = {name: _data_bytes(path, name, folder) for name in facts.locations}
    chunks = tuple(DataFile(one_line(name), size if isinstance(size, int) else None) for name, size in sizes.items())
    data = sum(chunk.bytes or 0 for chunk in chunks)
    roles: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    for initializer in facts.initializers:
        roles[initializer.role] += initializer.bytes
        dtypes[initializer.dtype] += initializer.bytes
    return ModelInspection(
        dtype=dtype,
        file=path.name,
        logits=logits,
        opsets=facts.opsets,
        ir_version=facts.ir_version,
        nodes=facts.nodes,
        nodes_without_weight_casts=facts.nodes_without_weight_casts,
        op_counts=facts.op_counts,
        accuracy_levels=facts.accuracy_levels,
        bytes=path.stat().st_size + data,
        bits_per_weight=data * 8 / spec.num_parameters,
        bytes_by_role={role: roles[role] for role in (*(name for name, _ in ROLES), OTHER) if roles[role]},
        bytes_by_dtype=dict(dtypes.most_common()),
        chunks=chunks,
        inputs=facts.inputs,
        outputs=facts.outputs,
        problems=_first([*contract_problems(facts, spec, dtype, logits), *data_problems(path, facts, sizes)]),
    )


def logits_mode(outputs: Iterable[Tensor]) -> LogitsMode | None:
    """Which positions the logits are given for, by their second axis."""
    shape = next((output.shape for output in outputs if output.name == contract.LOGITS), ())
    if len(shape) != 3:
        return None
    return "last" if shape[1] == 1 else "all" if isinstance(shape[1], str) else None


def contract_problems(facts: GraphFacts, spec: ModelSpec, dtype: str, logits: LogitsMode | None) -> list[str]:
    """Where inputs, outputs and versions differ from the contract of this dtype, one line each."""
    problems: list[str] = []
    if facts.opsets.get("", 0) != contract.OPSET:
        problems.append(f"opset is {facts.opsets.get('', 0)}, expected {contract.OPSET}")
    if facts.ir_version != contract.IR_VERSION:
        problems.append(f"IR version is {facts.ir_version}, expected {contract.IR_VERSION}")
    kv = contract.held_kv_cache(facts.inputs) if dtype in contract.INT8_KV_DTYPES else "native"
    wanted = contract.contract(spec, contract.cache_dtype(dtype), logits or "last", kv)
    present = {tensor.name for tensor in facts.overridable}
    overridable = tuple(tensor for tensor in wanted.overridable if tensor.name in present)  # other tools have none
    for kind, got, expected in (
        ("input", facts.inputs, wanted.inputs),
        ("overridable input", facts.overridable, overridable),
        ("output", facts.outputs, wanted.outputs),
    ):
        problems += _tensor_problems(kind, got, expected)
    return problems


def _tensor_problems(kind: str, got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> list[str]:
    by_name = {tensor.name: tensor for tensor in got}
    names = [tensor.name for tensor in expected]
    problems = [f"{kind} {name} is missing" for name in names if name not in by_name]
    problems += [f"{kind} {tensor.name} is not in the contract" for tensor in got if tensor.name not in names]
    for tensor in expected:
        found = by_name.get(tensor.name, tensor)
        if found.dtype != tensor.dtype:
            problems.append(f"{kind} {tensor.name} is {found.dtype}, expected {tensor.dtype}")
        if found.shape != tensor.shape:
            problems.append(f"{kind} {tensor.name} is {_shape(found)}, expected {_shape(tensor)}")
    if not problems and [tensor.name for tensor in got] != names:
        problems.append(f"the {kind}s are not in the order of the contract: logits first, then caches by layer")
    return problems


def data_problems(path: Path, facts: GraphFacts, sizes: Mapping[str, int | str | None]) -> list[str]:
    """Where the external data of the graph at `path` is missing, elsewhere, too short, misnamed or too large.

    sizes: of its data files in bytes; None where one is missing, a text where it may not be read.
    """
    problems: list[str] = []
    needed: dict[str, int] = {}
    for initializer in facts.initializers:
        if initializer.location is not None:
            needed[initializer.location] = max(needed.get(initializer.location, 0), initializer.end)
    for number, (name, end) in enumerate(sorted(needed.items(), key=lambda item: (len(item[0]), item[0]))):
        expected = f"{path.name}_data" + (f"_{number}" if number else "")
        told = name if is_plain_path(name) else shown(name)
        if name != expected:
            problems.append(f"data file {number} is called {told}, expected {expected}")
        size = sizes[name]
        if isinstance(size, str):
            problems.append(size)
        elif size is None:
            problems.append(f"data file {told} is missing")
        elif size < end:
            problems.append(f"data file {told} has {size} bytes, the graph reads up to {end}")
        elif size > contract.MAX_CHUNK_BYTES:
            problems.append(f"data file {told} has {size} bytes, a browser takes {contract.MAX_CHUNK_BYTES} at most")
    return problems


def _data_bytes(path: Path, name: str, folder: Path) -> int | str | None:
    """Bytes of the data file `name` of the graph at `path`; None where it is missing, or why it may not be read."""
    try:
        found = data_path(path, name, folder)
    except ArtifactError as error:
        return str(error)
    return found.stat().st_size if found.is_file() else None


def _first(problems: list[str]) -> tuple[str, ...]:
    """At most :data:`MAX_PROBLEMS`; a file that is nothing of ours has as many as it has inputs."""
    rest = len(problems) - MAX_PROBLEMS
    return (*problems[:MAX_PROBLEMS], f"and {rest} more") if rest > 0 else tuple(problems)


def _shape(tensor: Tensor) -> str:
    return "[" + ", ".join(str(size) for size in tensor.shape) + "]"
