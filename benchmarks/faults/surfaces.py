"""Which file is changed, in which sound folder, and which readers must bear it.

A check is what the commands do with a folder before any heavy work. It gets the folder with one file changed, and
returns, or raises an error of the tool: one line.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults.bases import SECRET, TOOLS
from benchmarks.faults.verdict import LONGEST_LINE, line_fault
from lfm2export.errors import Lfm2ExportError

#: Where a check packs an artifact in its folder, and removes it again.
PACKED = "packed"


class LateRefusalError(Exception):
    """What was known before the work began is refused after it."""


class LineError(Exception):
    """What a command would print is not one line."""


class LeakError(Exception):
    """Something that must stay out is in what was written."""


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


def raise_line_fault(line: str, longest: int = LONGEST_LINE) -> None:
    """
    Raises:
        LineError: `line`, that a command prints, is not one line, or has more characters.
    """
    fault = line_fault(line, longest)
    if fault is not None:
        raise LineError(f"{fault}: {line[:80]!r}")


def build_inputs(folder: Path) -> None:
    """What `build` reads of a checkpoint before it traces; what passes packs without an error, and what was packed can
    be used and holds nothing that must stay out."""
    from lfm2export.checkpoint import open_checkpoint
    from lfm2export.package import read_inputs

    checkpoint = open_checkpoint(folder)
    inputs = read_inputs(folder, checkpoint.config, checkpoint.spec)
    packed = folder / PACKED
    try:
        _pack(packed, inputs, checkpoint)
        _use(packed)
    except (LeakError, RecursionError, MemoryError):
        raise
    except Exception as error:
        raise LateRefusalError(f"{type(error).__name__}: {error}") from error
    finally:
        shutil.rmtree(packed, ignore_errors=True)


def _pack(packed: Path, inputs: Any, checkpoint: Any) -> None:
    """The package around the graph of a sound artifact."""
    from lfm2export.package import Provenance, write_package

    shutil.copytree(packed.parent.parent / "onnx", packed / "onnx")
    files = tuple(_Written(path.name, path.stat().st_size, "0" * 64) for path in sorted((packed / "onnx").iterdir()))
    recipe = {"q4": {"body": None, "table": None, "lookup": None}}
    provenance = Provenance("packed", None, None, {}, len(checkpoint.tensors), recipe)
    write_package(packed, inputs, checkpoint.spec, {"q4": _Model(files)}, provenance)


def _use(packed: Path) -> None:
    chat(packed)
    for path in packed.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        if SECRET.strip().encode() in data or b"root:x:0" in data:
            raise LeakError(f"a file from outside the source is in {path.name}")
        if path.suffix == ".json" and b'"auto_map"' in data:
            raise LeakError(f"{path.name} says which code to run")


@dataclass(frozen=True)
class _Written:
    """As `writer.WrittenFile`."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Model:
    """As `writer.WrittenModel`."""

    files: tuple[_Written, ...]
    overflows: tuple[Any, ...] = ()


def chat(folder: Path) -> None:
    """What `generate` and `verify` read of a folder before they open a model."""
    from lfm2export.artifact import find_model
    from lfm2export.generation.defaults import read_defaults
    from lfm2export.text.tokenizer import ChatTokenizer

    with contextlib.suppress(Lfm2ExportError):
        find_model(folder)
    read_defaults(folder)
    tokenizer = ChatTokenizer(folder)
    tokens = tokenizer.encode("Hello, Öl 水")
    tokenizer.decode(tokens)
    if tokenizer.has_chat_template:
        tokenizer.encode_chat([{"role": "user", "content": "Hello"}])
        tokenizer.encode_chat([{"role": "system", "content": "x"}, {"role": "user", "content": "Hello"}], tools=TOOLS)


def inspect(folder: Path) -> None:
    """`inspect`, with what it prints."""
    from lfm2export.commands import run_inspect

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run_inspect(folder, False)
        run_inspect(folder, True)


def verify(folder: Path) -> None:
    """What `verify` reads of an artifact before it runs anything, with its reference given and without."""
    from lfm2export.verify.source import find_source

    try:
        find_source(folder, None)
    except Lfm2ExportError as error:  # a sound one is refused, too: its source is a folder somewhere
        raise_line_fault(str(error).replace(str(folder), ""))
    find_source(folder, folder.parent / "reference")


def records(folder: Path) -> None:
    """What `report` reads, and its page in Markdown."""
    from lfm2export.report import markdown
    from lfm2export.report.consumers import read_consumers
    from lfm2export.report.formats import read_formats
    from lfm2export.verify.document import read_parity

    markdown.render(read_parity(folder), read_consumers(folder), read_formats(folder))


def report(folder: Path) -> None:
    """`report` as a whole, whose plots take most of a second."""
    from lfm2export.report import render_again

    render_again(folder)


def session(folder: Path) -> None:
    """An artifact opened in the runtime, as `generate` does."""
    from lfm2export.runtime import OnnxModel

    OnnxModel(folder, "q4", threads=1)


def tools(folder: Path) -> None:
    """`generate --tools`: the list, and a prompt that holds it."""
    from lfm2export.generation.tools import read_tools
    from lfm2export.text.tokenizer import ChatTokenizer

    found = read_tools(folder / "tools.json")
    ChatTokenizer(folder.parent / "reference").encode_chat([{"role": "user", "content": "Hello"}], tools=found)


def prompts(folder: Path) -> None:
    """`verify --prompts`."""
    from lfm2export.commands import _lines

    _lines(folder / "prompts.txt")


def texts(folder: Path) -> None:
    """`verify --text` and `build --calibration-text`."""
    from lfm2export.text.read import read_text_file

    read_text_file(folder / "text.txt")
    read_text_file(folder / "text.txt.xz")


def answers(folder: Path) -> None:
    """Tool calls in an answer: whatever a model writes is read, or said to be unreadable in one line."""
    from lfm2export.generation.tools import parse_tool_calls

    text = (folder / "answer.txt").read_bytes().decode("utf-8", "replace")
    found = parse_tool_calls(text)
    for line in found.errors[:50]:
        raise_line_fault(line)
    for call in found.calls[:50]:
        raise_line_fault(str(call), longest=2 * len(text) + 700)


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
    Surface("build: config.json", "checkpoint", "config.json", JSON, build_inputs, 4),
    Surface("build: generation_config.json", "checkpoint", "generation_config.json", JSON, build_inputs, 2),
    Surface("build: tokenizer.json", "checkpoint", "tokenizer.json", JSON, build_inputs, 3),
    Surface("build: tokenizer_config.json", "checkpoint", "tokenizer_config.json", JSON, build_inputs, 3),
    Surface("build: special_tokens_map.json", "checkpoint", "special_tokens_map.json", JSON, build_inputs, 1),
    Surface("build: chat_template.jinja", "checkpoint", "chat_template.jinja", TEMPLATE, build_inputs, 3),
    Surface("build: model.safetensors", "checkpoint", "model.safetensors", WEIGHTS, build_inputs, 4),
    Surface("build: shard", "sharded", "model-00002-of-00004.safetensors", _SHARDS, build_inputs, 2),
    Surface("build: shard index", "sharded", "model.safetensors.index.json", JSON, build_inputs, 3),
    Surface("build: README.md", "checkpoint", "README.md", YAML, build_inputs, 3),
    Surface("build: LICENSE", "checkpoint", "LICENSE", _LEGAL, build_inputs, 1),
    Surface("build: NOTICE", "checkpoint", "NOTICE", _LEGAL, build_inputs, 1),
    Surface("generate: config.json", "artifact", "config.json", ("json", "bytes"), chat, 1),
    Surface("generate: generation_config.json", "artifact", "generation_config.json", JSON, chat),
    Surface("generate: tokenizer.json", "artifact", "tokenizer.json", JSON, chat, 3),
    Surface("generate: tokenizer_config.json", "artifact", "tokenizer_config.json", JSON, chat),
    Surface("generate: chat_template.jinja", "artifact", "chat_template.jinja", TEMPLATE, chat, 4),
    Surface("generate: graph", "artifact", "onnx/model_q4.onnx", ("onnx", "bytes"), session, 1),
    Surface("inspect: config.json", "artifact", "config.json", ("json", "bytes"), inspect, 1),
    Surface("inspect: build.json", "artifact", "build.json", JSON, inspect),
    Surface("inspect: graph", "artifact", "onnx/model_q4.onnx", GRAPH, inspect, 5),
    Surface("inspect: data", "artifact", "onnx/model_q4.onnx_data", ("bytes", "place"), inspect, 1),
    Surface("verify: config.json", "artifact", "config.json", ("json", "bytes"), verify, 1),
    Surface("verify: build.json", "artifact", "build.json", JSON, verify, 3),
    Surface("report: parity.json", "artifact", "parity.json", JSON, records, 4),
    Surface("report: consumers.json", "artifact", "consumers.json", JSON, records, 1),
    Surface("report: build.json", "artifact", "build.json", JSON, records, 1),
    Surface("report: pages", "artifact", "parity.json", ("json",), report, 0.2, _REPORTS),
    Surface("report: README.md", "artifact", "README.md", ("yaml", "bytes"), report, 0.2, _REPORTS),
    Surface("generate: tools", "loose", "tools.json", JSON, tools, place="own"),
    Surface("generate: answer", "loose", "answer.txt", ANSWER, answers, 4, place="nothing"),
    Surface("verify: prompts", "loose", "prompts.txt", ("bytes",), prompts, 1, place="own"),
    Surface("verify: text", "loose", "text.txt.xz", ("bytes",), texts, 1, place="own"),
)  # fmt: skip

BY_NAME = {surface.name: surface for surface in SURFACES}
