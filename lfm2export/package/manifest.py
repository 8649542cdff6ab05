"""build.json: what the folder was made from and how, and the sha256 of every file, so that anyone can check it.

Nothing in it depends on when, where or by whom the build was run: two builds of one source are byte-identical. What
`verify` writes may be measured again, so it is outside the hashes: parity.json, .md and .html, and the text between the
card's parity markers, without which README.md is hashed. (The manifest cannot hold its own hash.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from lfm2export.contract import MODEL_FILES
from lfm2export.errors import ArtifactError
from lfm2export.package.card import without_parity
from lfm2export.package.graph import read_graph
from lfm2export.package.model_files import Models, Provenance, WrittenModel
from lfm2export.progress import Progress, silent
from lfm2export.spec import ModelSpec

FILE = "build.json"
SCHEMA_VERSION = 1

#: Files that may change after the build.
UNHASHED = (FILE, "parity.json", "parity.md", "parity.html", "consumers.json")

#: Libraries whose version may change a byte of the output.
LIBRARIES = ("jinja2", "ml_dtypes", "numpy", "onnx", "onnx-ir", "onnxscript", "torch", "transformers")

HASH_BYTES = 4 << 20

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
        size, digest = known[name] if name in known else _measure(folder, name)
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
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is not valid JSON ({error}); build the artifact again") from error
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if version != SCHEMA_VERSION:
        raise ArtifactError(f"{path} has the schema {version!r}, expected {SCHEMA_VERSION}; use the tool that wrote it")
    found: dict[str, Any] = manifest
    files = found.get("files")
    if not isinstance(files, dict) or not all(_is_entry(name, entry) for name, entry in files.items()):
        raise ArtifactError(f"{path} lists its files wrongly, expected names inside the folder; build it again")
    return found


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
        if not (folder / name).is_file():
            problems.append(Problem("missing", name, f"{name} is missing; build the artifact again"))
            continue
        if name != "README.md" and (folder / name).stat().st_size != entry["bytes"]:
            got = (folder / name).stat().st_size
            problems.append(Problem("size", name, f"{name} has {got} bytes, expected {entry['bytes']}"))
            continue
        _, digest = _measure(folder, name, count)
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


def _measure(folder: Path, name: str, count: Callable[[int], None] | None = None) -> tuple[int, str]:
    """Bytes and sha256 of a file; of README.md without what stands between the parity markers."""
    path = folder / name
    if name == "README.md":
        text = without_parity(path.read_bytes().decode("utf-8", "replace")).encode()
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


def _is_entry(name: str, entry: Any) -> bool:
    path = PurePosixPath(name)
    inside = not path.is_absolute() and ".." not in path.parts and "\\" not in name and ":" not in name
    return (
        inside
        and isinstance(entry, dict)
        and isinstance(entry.get("bytes"), int)
        and isinstance(entry.get("sha256"), str)
    )
