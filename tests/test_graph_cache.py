"""Kept graphs: the same bytes as without, and nothing that an entry says is believed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from lfm2export import graph_cache, pipeline
from lfm2export.checkpoint import open_checkpoint
from lfm2export.cli import main
from lfm2export.errors import ArtifactError, GraphError, Lfm2ExportError
from lfm2export.graph_cache import graph_key, keep_graph, load_graph, packed, unpacked
from lfm2export.pipeline import build, dtype_graph
from lfm2export.recipes import RECIPES, Options
from lfm2export.user_cache import VARIABLE, read_entry, write_entry
from passes.traces import ODD, SPEC, shared_fused
from tiny import write_tiny

KEY = "0" * 64

_fused = cache(pipeline.fused_graph)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, empty; its folder of graphs."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / graph_cache.KIND


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What `pipeline.fused_graph` was called for; a trace that was made before serves again."""
    called: list[Any] = []

    def fused_graph(spec: Any, logits: Any) -> ir.Model:
        called.append((spec, logits))
        return _fused(spec, logits).clone()

    monkeypatch.setattr(pipeline, "fused_graph", fused_graph)
    yield called


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in files}


def test_builds_are_the_same_bytes_without_with_and_from_the_cache(
    tiny_source: Path, tmp_path: Path, own_cache: Path, traces: list[Any]
) -> None:
    found = []
    for place, use, traced, kept in (("a", False, 1, 0), ("b", True, 2, 1), ("c", True, 2, 1)):
        out = tmp_path / place / "out"
        found.append(digests(build(str(tiny_source), dtypes=list(RECIPES), cache=use, out=out).folder))
        assert len(traces) == traced
        assert len(list(own_cache.glob("*"))) == kept
    assert found[0] == found[1] == found[2] and len(found[0]) > 15
    build(str(tiny_source), options=Options(logits="all"), out=tmp_path / "d")
    assert len(traces) == 3 and len(list(own_cache.glob("*"))) == 2


@pytest.mark.parametrize("logits", ["last", "all"])
@pytest.mark.parametrize("spec", [SPEC, ODD], ids=["plain", "odd"])
def test_every_file_of_a_kept_graph_is_that_of_the_traced_one(spec: Any, logits: Any) -> None:
    fused = shared_fused(spec, logits)
    kept = unpacked(packed(fused, KEY), KEY, spec, logits)
    for dtype in RECIPES:
        for options in (Options(logits=logits), Options(logits=logits, q8="blocks", table_bits=4, symmetric=True)):
            first, second = (_graph_bytes(dtype_graph(model, spec, dtype, options)) for model in (fused, kept))
            assert first == second
    assert packed(kept, KEY) == packed(fused, KEY)


def _graph_bytes(model: ir.Model) -> bytes:
    """The graph with every weight as its recipe's text."""
    for value in model.graph.initializers.values():
        if (recipe := value.meta.get(graph_cache.RECIPE)) is not None:
            value.const_value = ir.tensor(np.frombuffer(repr(recipe).encode(), np.uint8), name=value.name)
    return bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def _changed(head: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        line, _, graph = content.partition(b"\n")
        value = json.loads(line)
        head(value)
        return json.dumps(value).encode() + b"\n" + graph

    return change


def _with_graph(edit: Callable[[ir.Model], object]) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        import onnx

        line, _, graph = content.partition(b"\n")
        model = ir.from_proto(onnx.load_model_from_string(graph))
        edit(model)
        return line + b"\n" + bytes(ir.to_proto(model).SerializeToString())

    return change


def _first(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(head: dict[str, Any]) -> None:
        head["weights"][0][name] = value

    return edit


def _rename_output(model: ir.Model) -> None:
    model.graph.outputs[0].name = "other"


def _drop_input(model: ir.Model) -> None:
    model.graph.inputs.pop()


HARMS: dict[str, Callable[[bytes], bytes]] = {
    "another key": _changed(lambda head: head.update(key="1" * 64)),
    "a part of no checkpoint": _changed(_first("parts", ["../../etc/passwd"])),
    "parts of another shape": _changed(_first("parts", ["model.embed_tokens.weight"] * 2)),
    "no parts": _changed(_first("parts", [])),
    "another shape": _changed(_first("shape", [1, 2, 3])),
    "a shape that is no list": _changed(_first("shape", "all")),
    "a weight fewer": _changed(lambda head: head["weights"].pop()),
    "a weight twice": _changed(lambda head: head["weights"].append(head["weights"][0])),
    "no weights": _changed(lambda head: head.pop("weights")),
    "no JSON": lambda content: b"{" + content,
    "no graph": lambda content: content.partition(b"\n")[0] + b"\n",
    "half a graph": lambda content: content[:-100],
    "another output": _with_graph(_rename_output),
    "an input fewer": _with_graph(_drop_input),
    "nothing": lambda content: b"",
}


@pytest.mark.parametrize("harm", HARMS)
def test_an_entry_that_contradicts_what_is_known_is_refused(harm: str) -> None:
    content = packed(shared_fused(SPEC), KEY)
    assert unpacked(content, KEY, SPEC, "last").graph.outputs[0].name == "logits"
    with pytest.raises((ArtifactError, GraphError)):
        unpacked(HARMS[harm](content), KEY, SPEC, "last")


def test_a_graph_of_another_spec_is_refused() -> None:
    content = packed(shared_fused(SPEC), KEY)
    for other in (ODD, replace(SPEC, vocab_size=SPEC.vocab_size + 1)):
        with pytest.raises(Lfm2ExportError):
            unpacked(content, KEY, other, "last")


def test_a_damaged_or_planted_entry_is_ignored_and_replaced(
    tiny_source: Path, tmp_path: Path, own_cache: Path, traces: list[Any]
) -> None:
    first = digests(build(str(tiny_source), out=tmp_path / "a" / "out").folder)
    (path,) = own_cache.iterdir()
    content = read_entry(path)
    assert content is not None
    path.write_bytes(path.read_bytes()[:1000])
    assert digests(build(str(tiny_source), out=tmp_path / "b" / "out").folder) == first
    write_entry(path, HARMS["a part of no checkpoint"](content))  # its hash holds
    assert digests(build(str(tiny_source), out=tmp_path / "c" / "out").folder) == first
    assert len(traces) == 3
    assert read_entry(path) == content


def test_a_cache_that_cannot_be_written_is_none(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, traces: list[Any]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file"))
    for place in ("a", "b"):
        assert (build(str(tiny_source), out=tmp_path / place).folder / "build.json").is_file()
    assert len(traces) == 2


def test_the_key_is_of_all_that_the_graph_follows_from(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = open_checkpoint(write_tiny(tmp_path / "a")).spec
    keys = {graph_key(spec, "last"), graph_key(spec, "all"), graph_key(replace(spec, norm_eps=1e-6), "last")}
    version = graph_cache.metadata.version
    with monkeypatch.context() as patch:
        patch.setattr(graph_cache.metadata, "version", lambda name: version(name) + "x" * (name == "torch"))
        keys.add(graph_key(spec, "last"))
    with monkeypatch.context() as patch:
        patch.setattr(graph_cache, "source_hash", lambda: "another")
        keys.add(graph_key(spec, "last"))
    assert len(keys) == 5
    assert graph_key(spec, "last") in keys
    keep_graph(SPEC, "last", shared_fused(SPEC))
    assert load_graph(SPEC, "last") is not None and load_graph(SPEC, "all") is None
    monkeypatch.setattr(graph_cache, "source_hash", lambda: "another")
    assert load_graph(SPEC, "last") is None


def test_the_sources_are_this_packages_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package"
    (package / "passes").mkdir(parents=True)
    for name in ("__init__.py", "passes/one.py", "data.txt"):
        (package / name).write_text("x = 1\n")
    monkeypatch.setattr(graph_cache.lfm2export, "__file__", str(package / "__init__.py"))
    before = graph_cache.source_hash()
    for name in (".tools/venv", "consumers/js/node_modules/gyp", "__pycache__"):
        (package / name).mkdir(parents=True)
        (package / name / "other.py").write_text("")
    (package / "data.txt").write_text("other")
    assert graph_cache.source_hash() == before
    (package / "passes" / "one.py").write_text("x = 2\n")
    assert graph_cache.source_hash() != before


def test_no_cache_on_the_command_line(tiny_source: Path, tmp_path: Path, own_cache: Path, traces: list[Any]) -> None:
    for option, kept in (("--no-cache", False), ("--cache", True)):
        out = tmp_path / f"out{option}"
        arguments = ["build", str(tiny_source), "-o", str(out), "--quiet", "--no-verify", option]
        assert CliRunner().invoke(main, arguments).exit_code == 0
        assert own_cache.exists() == kept
    assert len(traces) == 2
