"""What the chat page must know of each model file before it loads one, read from the graphs: its `files.json`.

    {"schema": 1, "model": "LFM2-350M",
     "files": {"q8": {"bytes": 354483968, "largest": 67108864, "cache": "float32", "int8": true}}}

model: the name of the source, null where the folder has no build.json. bytes: graph and data files. largest: of its
tensors, which a GPU holds in one buffer. cache: the type of keys and values. int8: whether it multiplies in 8 bits,
which WebGPU leaves to the processor.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lfm2export.contract import MICROSOFT, MODEL_FILES, past_conv, past_key_value
from lfm2export.errors import ArtifactError
from lfm2export.package.graph import GraphFacts, read_graph
from lfm2export.package.manifest import read_manifest
from lfm2export.package.plain import json_bytes
from lfm2export.spec import ModelSpec, parse_spec, read_config
from lfm2export.untrusted.onnx_file import data_path
from lfm2export.untrusted.paths import find_file

SCHEMA = 1

#: The operators whose products are of 8 bits.
INT8_PRODUCTS = ("MatMulInteger", f"{MICROSOFT}.MatMulIntegerToFloat", f"{MICROSOFT}.DynamicQuantizeMatMul")

#: What a GPU computes alone, and the type of caches with which it cannot.
FOR_GPUS = ("q4", "q4f16", "fp16")
INT8 = "int8"


@dataclass(frozen=True)
class PageFile:
    """One model file; see the top of this module. cache: None where it has no cache of the contract."""

    bytes: int
    largest: int
    cache: str | None
    int8: bool


def describe_files(artifact: Path) -> dict[str, PageFile]:
    """Every model file of `artifact` by dtype.

    Raises:
        SourceError: config.json is missing, or is not LFM2's.
        ArtifactError: there is no model file, or a damaged one, or data outside the folder.
    """
    spec = parse_spec(read_config(artifact))
    files = {dtype: find_file(artifact, f"onnx/{name}", ArtifactError) for dtype, name in MODEL_FILES.items()}
    found = {dtype: _described(path, artifact, spec) for dtype, path in files.items() if path is not None}
    if not found:
        raise ArtifactError(f"{artifact} has no model file in onnx/; give the folder that a build wrote")
    return found


def _described(path: Path, artifact: Path, spec: ModelSpec) -> PageFile:
    facts = read_graph(path)
    data = [data_path(path, name, artifact) for name in facts.locations]
    return PageFile(
        bytes=sum(one.stat().st_size for one in (path, *data) if one.is_file()),
        largest=max((tensor.bytes for tensor in facts.initializers), default=0),
        cache=_cache(facts, spec),
        int8=any(name in facts.op_counts for name in INT8_PRODUCTS),
    )


def _cache(facts: GraphFacts, spec: ModelSpec) -> str | None:
    attention = spec.attention_layers
    name = past_key_value(attention[0], "key") if attention else past_conv(0)
    return next((tensor.dtype for tensor in facts.inputs if tensor.name == name), None)


def encoded(artifact: Path, files: Mapping[str, PageFile]) -> bytes:
    """The text of `files.json`.

    Raises:
        ArtifactError: build.json is damaged.
    """
    model = _source(artifact).get("name")
    return json_bytes({"schema": SCHEMA, "model": model, "files": {dtype: asdict(files[dtype]) for dtype in files}})


def missing_for_whom(artifact: Path, files: Mapping[str, PageFile]) -> list[str]:
    """A line about each kind of visitor whom no file of `artifact` serves well, and one with the command that adds it.

    Raises:
        ArtifactError: build.json is damaged.
    """
    lines: list[str] = []
    wanted: list[str] = []
    options: list[str] = []
    if not any(file.int8 for file in files.values()):
        wanted.append("q8")
        options += ["--q8", "channels"] if "q8" in files else []
        whose = "with q8 in blocks" if "q8" in files else "without q8"
        lines.append(f"{whose}, visitors without WebGPU get 1 to 3 tokens a second (350M, two threads)")
    if not any(dtype in files and files[dtype].cache != INT8 for dtype in FOR_GPUS):
        wanted.append("q4f16" if "q4" in files else "q4")
        whose = "with int8 caches in q4, and without q4f16" if "q4" in files else "without q4 or q4f16"
        lines.append(f"{whose}, visitors with WebGPU do not compute on their GPU, or not all of it")
    if not wanted:
        return []
    command = _command(artifact, {*files, *wanted}, options)
    return [*lines, f"for {' and '.join(wanted)}, build again, with the options of before: {command}"]


def _command(artifact: Path, dtypes: Collection[str], options: Collection[str]) -> str:
    """A build of the same source with `dtypes`; SOURCE stands for a checkpoint that build.json does not name."""
    source = _source(artifact)
    words = ["lfm2-export", "build", source.get("repo_id") or "SOURCE"]
    if source.get("repo_id") and source.get("revision"):
        words += ["--revision", source["revision"]]
    words += [word for dtype in MODEL_FILES if dtype in dtypes for word in ("--dtype", dtype)]
    return shlex.join([*words, *options, "-o", str(artifact), "--force"])


def _source(artifact: Path) -> Mapping[str, Any]:
    """What build.json says of where the weights came from; nothing where there is none."""
    manifest = read_manifest(artifact)
    source: Mapping[str, Any] = manifest["source"] if manifest is not None else {}
    return source
