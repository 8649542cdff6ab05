"""build.json: what the folder was made from and how, and the sha256 of every file, so that anyone can check it.

Nothing in it depends on when, where or by whom the build was run: two builds of one source are byte-identical. What
`verify` writes may be measured again, so it is outside the hashes: parity.json, .md and .html, and the text between the
card's parity markers, without which README.md is hashed. (The manifest cannot hold its own hash.)
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from lfm2export.contract import MODEL_FILES
from lfm2export.errors import ArtifactError
from lfm2export.hub import COMMIT, is_hub_id
from lfm2export.package.card import without_parity
from lfm2export.package.graph import read_graph
from lfm2export.package.model_files import Models, Provenance, WrittenModel
from lfm2export.progress import Progress, silent
from lfm2export.spec import ModelSpec
from lfm2export.untrusted.json_reader import read_object
from lfm2export.untrusted.paths import find_file, is_plain_path, shown
from lfm2export.untrusted.records import Mismatch, decode
from lfm2export.untrusted.text import MAX_TEXT_BYTES, read_bytes

FILE = "build.json"
SCHEMA_VERSION = 1

#: Files that may change after the build.
UNHASHED = (FILE, "parity.json", "parity.md", "parity.html", "consumers.json")

#: Libraries whose version may change a byte of the output.
LIBRARIES = ("jinja2", "ml_dtypes", "numpy", "onnx", "onnx-ir", "onnxscript", "torch", "transformers")

HASH_BYTES = 4 << 20

#: Bytes of a manifest; the formats of a large mixture of experts take 2 MB.
MAX_BYTES = 16 << 20

_SHA256 = re.compile(r"[0-9a-f]{64}")

Kind = Literal["missing", "size", "hash", "extra"]


@dataclass(frozen=True)
class Problem:
    """One difference between the folder and its manifest. An "extra" file is not of the build; it may be harmless."""

    kind: Kind
    file: str
    message: str

    def __str__(self) -> str:
        return self.message


def library_versions() -> dict[str, str]:
    """Version of each of :data:`LIBRARIES`, without the local part (`+cpu`), which names a wheel and not the code."""
    return {name: metadata.version(name).split("+")[0] for name in LIBRARIES}


def write_manifest(
    folder: Path, provenance: Provenance, spec: ModelSpec, models: Models, dropped: Sequence[str] = ()
) -> None:
    """Write `folder`/build.json over every other file there; the models' hashes are those taken while writing them.

    dropped: what the source says and the artifact does not, such as "config.json: auto_map".
    """
    import lfm2export

    known = {f"onnx/{file.name}": (file.bytes, file.sha256) for model in models.values() for file in model.files}
    files: dict[str, Any] = {}
    for name in _files(folder):
        size, digest = known[name] if name in known else measure_file(folder, name)
        files[name] = {"bytes": size, "sha256": digest}
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "lfm2export", "version": lfm2export.__version__},
        "libraries": library_versions(),
        "source": {
            "name": provenance.name,
            "repo_id": provenance.repo_id,
            "revision": provenance.revision,
            "files": dict(sorted(provenance.source_files.items())),
            "tensors": provenance.tensor_count,
            "parameters": spec.num_parameters,
        },
        "options": dict(provenance.options),
        "recipe": {dtype: dict(options) for dtype, options in provenance.recipe.items()},
        **({"formats": dict(provenance.formats)} if provenance.formats is not None else {}),
        **({"dropped": list(dropped)} if dropped else {}),
        "models": {dtype: _model_entry(folder, spec, dtype, models[dtype]) for dtype in MODEL_FILES if dtype in models},
        "files": files,
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """`folder`/build.json, or None if there is none (a folder that another tool made).

    Raises:
        ArtifactError: it is damaged, or of a schema that this version does not know.
    """
    path = find_file(folder, FILE, ArtifactError)
    if path is None:
        return None
    remedy = "build the artifact again"
    found = read_object(path, ArtifactError, remedy, folder=folder, limit=MAX_BYTES)
    version = found.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} has the schema {shown(version)}, expected {SCHEMA_VERSION}; use the tool that wrote it"
        )
    try:
        _check(decode(found, _Manifest, FILE))
    except Mismatch as error:
        raise ArtifactError(f"{path} is damaged ({error}); {remedy}") from error
    return found | {"source": found.get("source", {})}


@dataclass(frozen=True)
class _Entry:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Source:
    name: str = ""
    repo_id: str | None = None
    revision: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    tensors: int = 0
    parameters: int = 0


@dataclass(frozen=True)
class _Model:
    file: str = ""
    chunks: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class _Manifest:
    """The types of what anybody reads from it; `formats` has a reader of its own (`report.formats`)."""

    files: Mapping[str, _Entry]
    source: _Source = field(default_factory=_Source)
    models: Mapping[str, _Model] = field(default_factory=dict)
    recipe: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    libraries: Mapping[str, Any] = field(default_factory=dict)


def _check(manifest: _Manifest) -> None:
    """What the types do not say.

    Raises:
        Mismatch: a name that is no plain path, a size below 0, no sha256, no hub id or revision.
    """
    for name, entry in manifest.files.items():
        if not is_plain_path(name):
            raise Mismatch(f"files has {shown(name)}, expected plain names inside the folder")
        if entry.bytes < 0 or not _SHA256.fullmatch(entry.sha256):
            raise Mismatch(f"files[{shown(name)}] has no size and sha256")
    source = manifest.source
    bad = next((name for name, digest in source.files.items() if not _SHA256.fullmatch(digest)), None)
    if bad is not None:
        raise Mismatch(f"source.files[{shown(bad)}] is no sha256")
    if source.repo_id is not None and not is_hub_id(source.repo_id):
        raise Mismatch(f"source.repo_id is {shown(source.repo_id)}, expected owner/name")
    if source.revision is not None and not COMMIT.fullmatch(source.revision):
        raise Mismatch(f"source.revision is {shown(source.revision)}, expected the hash of a commit")


def check_manifest(folder: Path, progress: Progress = silent) -> list[Problem]:
    """Compare every file of `folder` with its manifest: missing, of another size or hash, or not listed.

    Raises:
        ArtifactError: there is no manifest, or it is damaged.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise ArtifactError(f"{folder} has no {FILE}, so no hash can be checked; it was not built by this tool")
    problems: list[Problem] = []
    listed: Mapping[str, Any] = manifest["files"]
    total, done = sum(entry["bytes"] for entry in listed.values()), 0

    def count(read: int) -> None:
        nonlocal done
        done += read
        progress("hash", done, total, "B")

    for name, entry in listed.items():
        try:
            there = find_file(folder, name, ArtifactError) is not None
        except ArtifactError as error:
            problems.append(Problem("missing", name, str(error)))
            continue
        if not there:
            problems.append(Problem("missing", name, f"{name} is missing; build the artifact again"))
            continue
        if name != "README.md" and (folder / name).stat().st_size != entry["bytes"]:
            got = (folder / name).stat().st_size
            problems.append(Problem("size", name, f"{name} has {got} bytes, expected {entry['bytes']}"))
            continue
        try:
            _, digest = measure_file(folder, name, count)
        except ArtifactError as error:
            problems.append(Problem("size", name, str(error)))
            continue
        if digest != entry["sha256"]:
            problems.append(
                Problem("hash", name, f"{name} has the sha256 {digest[:12]}…, expected {entry['sha256'][:12]}…")
            )
    extra = [name for name in _files(folder) if name not in listed]
    problems += [Problem("extra", name, f"{name} is not in {FILE}") for name in extra]
    return problems


def _files(folder: Path) -> list[str]:
    """Every file below `folder` that is hashed, sorted; hidden files and folders (.git, .cache) are nobody's."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    names = [path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts)]
    return sorted(name for name in names if name not in UNHASHED)


def measure_file(folder: Path, name: str, count: Callable[[int], None] | None = None) -> tuple[int, str]:
    """Bytes and sha256 of a file; of README.md without what stands between the parity markers.

    Raises:
        ArtifactError: README.md is a link out of the folder, or longer than a card is.
    """
    path = folder / name
    if name == "README.md":
        card = read_bytes(path, ArtifactError, MAX_TEXT_BYTES, folder=folder)
        text = without_parity(card.decode("utf-8", "replace")).encode()
        return len(text), hashlib.sha256(text).hexdigest()
    size, state = 0, hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BYTES):
            state.update(block)
            size += len(block)
            if count is not None:
                count(len(block))
    return size, state.hexdigest()


def _model_entry(folder: Path, spec: ModelSpec, dtype: str, model: WrittenModel) -> dict[str, Any]:
    facts = read_graph(folder / "onnx" / MODEL_FILES[dtype])
    graph, *chunks = model.files
    size = sum(file.bytes for file in model.files)
    return {
        "file": f"onnx/{graph.name}",
        "chunks": len(chunks),
        "nodes": facts.nodes,
        "nodes_without_weight_casts": facts.nodes_without_weight_casts,
        "bytes": size,
        "bits_per_weight": round((size - graph.bytes) * 8 / spec.num_parameters, 4),
        "float16_overflows": [
            {"tensor": found.tensor, "count": found.count, "largest": float(found.largest)} for found in model.overflows
        ],
    }
