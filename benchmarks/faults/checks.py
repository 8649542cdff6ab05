"""What the commands do with a folder before any heavy work: the readers that somebody's files must not harm.

A check gets the folder with one file changed, and returns, or raises an error of the tool: one line.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults.bases import SECRET, TOOLS
from benchmarks.faults.verdict import LONGEST_LINE, line_fault
from lfm2export.errors import Lfm2ExportError, PromptError

#: Where a check packs an artifact in its folder, and removes it again.
PACKED = "packed"


class LateRefusalError(Exception):
    """What was known before the work began is refused after it."""


class LineError(Exception):
    """What a command would print is not one line."""


class LeakError(Exception):
    """Something that must stay out is in what was written."""


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
        if path.name.endswith("config.json") and b'"auto_map"' in data:
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
        try:
            tokenizer.encode_chat([{"role": "user", "content": "Hello"}], tools=TOOLS)
        except PromptError as error:  # a template may refuse tools, in one line
            if "refuses this conversation" not in str(error):
                raise
            raise_line_fault(str(error))


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


def consumers(folder: Path) -> None:
    """What `check-consumers` reads of an artifact itself before it hands it to others."""
    from lfm2export.consumers.genai_config import CONFIG, read_checked
    from lfm2export.spec import parse_spec, read_config

    read_checked(folder / CONFIG, folder, parse_spec(read_config(folder)))


def force(folder: Path) -> None:
    """Whether `build --force` may replace the folder."""
    from lfm2export.ownership import check_replaceable, edited_files

    check_replaceable(folder)
    edited_files(folder)


def answers(folder: Path) -> None:
    """Tool calls in an answer: whatever a model writes is read, or said to be unreadable in one line."""
    from lfm2export.generation.tools import parse_tool_calls

    text = (folder / "answer.txt").read_bytes().decode("utf-8", "replace")
    found = parse_tool_calls(text)
    for line in found.errors[:50]:
        raise_line_fault(line)
    for call in found.calls[:50]:
        raise_line_fault(str(call), longest=2 * len(text) + 700)
