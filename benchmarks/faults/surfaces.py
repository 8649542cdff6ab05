"""Which file is changed, in which sound folder, by what, and which check must bear it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults import checks
from benchmarks.faults.bases import FURTHER_TEMPLATE
from benchmarks.faults.checks import PACKED


@dataclass(frozen=True)
class Surface:
    """`file` of the base folder `base` is changed by mutators of `families`. weight: its share of the inputs.

    writes: names that the check may write or replace in the folder, as prefixes. place: what else may lie in the file's
    place, as a family of mutators.
    """

    name: str
    base: str
    file: str
    families: tuple[str, ...]
    check: Callable[[Path], None]
    weight: float = 2
    writes: tuple[str, ...] = (PACKED,)
    place: str = "place"


JSON = ("json", "json", "bytes")
YAML = ("yaml", "yaml", "bytes")
TEMPLATE = ("template", "template", "bytes")
WEIGHTS = ("safetensors", "safetensors", "bytes")
ANSWER = ("answer", "answer", "answer", "bytes")
GRAPH = ("onnx", "onnx", "onnx", "bytes")

_SHARDS = ("safetensors", "bytes")
_LEGAL = ("bytes", "place")
_REPORTS = ("parity.", "README.md")

SURFACES = (
    Surface("build: config.json", "checkpoint", "config.json", JSON, checks.build_inputs, 4),
    Surface("build: generation_config.json", "checkpoint", "generation_config.json", JSON, checks.build_inputs, 2),
    Surface("build: tokenizer.json", "checkpoint", "tokenizer.json", JSON, checks.build_inputs, 3),
    Surface("build: tokenizer_config.json", "checkpoint", "tokenizer_config.json", JSON, checks.build_inputs, 3),
    Surface("build: special_tokens_map.json", "checkpoint", "special_tokens_map.json", JSON, checks.build_inputs, 1),
    Surface("build: chat_template.jinja", "checkpoint", "chat_template.jinja", TEMPLATE, checks.build_inputs, 3),
    Surface("build: model.safetensors", "checkpoint", "model.safetensors", WEIGHTS, checks.build_inputs, 4),
    Surface("build: shard", "sharded", "model-00002-of-00004.safetensors", _SHARDS, checks.build_inputs, 2),
    Surface("build: shard index", "sharded", "model.safetensors.index.json", JSON, checks.build_inputs, 3),
    Surface("build: added_tokens.json", "sharded", "added_tokens.json", JSON, checks.build_inputs, 1),
    Surface("build: merges.txt", "sharded", "merges.txt", ("bytes",), checks.build_inputs, 0.5),
    Surface("build: further template", "sharded", FURTHER_TEMPLATE, TEMPLATE, checks.build_inputs, 1),
    Surface("build: README.md", "checkpoint", "README.md", YAML, checks.build_inputs, 3),
    Surface("build: LICENSE", "checkpoint", "LICENSE", _LEGAL, checks.build_inputs, 1),
    Surface("build: NOTICE", "checkpoint", "NOTICE", _LEGAL, checks.build_inputs, 1),
    Surface("generate: config.json", "artifact", "config.json", ("json", "bytes"), checks.chat, 1),
    Surface("generate: generation_config.json", "artifact", "generation_config.json", JSON, checks.chat),
    Surface("generate: tokenizer.json", "artifact", "tokenizer.json", JSON, checks.chat, 3),
    Surface("generate: tokenizer_config.json", "artifact", "tokenizer_config.json", JSON, checks.chat),
    Surface("generate: chat_template.jinja", "artifact", "chat_template.jinja", TEMPLATE, checks.chat, 4),
    Surface("generate: graph", "artifact", "onnx/model_q4.onnx", ("onnx", "bytes"), checks.session, 1),
    Surface("inspect: config.json", "artifact", "config.json", ("json", "bytes"), checks.inspect, 1),
    Surface("inspect: build.json", "artifact", "build.json", JSON, checks.inspect),
    Surface("inspect: graph", "artifact", "onnx/model_q4.onnx", GRAPH, checks.inspect, 5),
    Surface("inspect: data", "artifact", "onnx/model_q4.onnx_data", ("bytes", "place"), checks.inspect, 1),
    Surface("verify: config.json", "artifact", "config.json", ("json", "bytes"), checks.verify, 1),
    Surface("verify: build.json", "artifact", "build.json", JSON, checks.verify, 3),
    Surface("build --force: build.json", "artifact", "build.json", JSON, checks.force),
    Surface("check-consumers: genai_config.json", "artifact", "genai_config.json", JSON, checks.consumers),
    Surface("report: parity.json", "artifact", "parity.json", JSON, checks.records, 4),
    Surface("report: consumers.json", "artifact", "consumers.json", JSON, checks.records, 1),
    Surface("report: build.json", "artifact", "build.json", JSON, checks.records, 1),
    Surface("report: pages", "artifact", "parity.json", ("json",), checks.report, 0.2, _REPORTS),
    Surface("report: README.md", "artifact", "README.md", ("yaml", "bytes"), checks.report, 0.2, _REPORTS),
    Surface("generate: tools", "loose", "tools.json", JSON, checks.tools, place="own"),
    Surface("generate: answer", "loose", "answer.txt", ANSWER, checks.answers, 4, place="nothing"),
    Surface("verify: prompts", "loose", "prompts.txt", ("bytes",), checks.prompts, 1, place="own"),
    Surface("verify: text", "loose", "text.txt.xz", ("bytes",), checks.texts, 1, place="own"),
)  # fmt: skip

BY_NAME = {surface.name: surface for surface in SURFACES}
