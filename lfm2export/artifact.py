"""Which model files an artifact folder has, and which one to open. It imports no runtime."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from lfm2export.contract import MODEL_FILES
from lfm2export.errors import ArtifactError
from lfm2export.hub import is_hub_id
from lfm2export.untrusted.onnx_file import data_path, opened, rewritten, scan, scan_file
from lfm2export.untrusted.paths import find_file, is_utf8

#: Which file to open when none is asked for: what the model card runs first, then the small ones, then the exact ones.
PREFERENCE = ("q4", "q4f16", "q8", "fp16", "fp32")


def check_folder(folder: Path) -> None:
    """Whether there is a folder to look for an artifact in.

    Raises:
        ArtifactError: there is none; where it could be a hub id, the message says how to download that. Or its name is
            not UTF-8, which onnxruntime cannot open.
    """
    if folder.is_dir():
        if not is_utf8(folder.resolve()):
            raise ArtifactError(f"the name of {folder.resolve()} is not UTF-8; rename that folder")
        return
    name = folder.as_posix()
    if is_hub_id(name) and not folder.parent.is_dir():
        raise ArtifactError(
            f"{name} is not a folder; if it is a repository of the hub, download it first: "
            f"hf download {name} --local-dir {folder.name}"
        )
    raise ArtifactError(f"{folder} is not a folder; give the folder that a build wrote")


def find_model(folder: Path, dtype: str | None = None) -> Path:
    """The ONNX file of `dtype` in `folder` or its onnx/ folder; without a dtype the first of :data:`PREFERENCE`.

    Raises:
        ArtifactError: no such folder, dtype or file; the message lists what is there.
    """
    check_folder(folder)
    if dtype is not None and dtype not in MODEL_FILES:
        raise ArtifactError(f"dtype {dtype!r} is unknown; expected one of {', '.join(MODEL_FILES)}")
    present = available_models(folder)
    wanted = [dtype] if dtype is not None else [name for name in PREFERENCE if name in present]
    if wanted and wanted[0] in present:
        return present[wanted[0]]
    expected = f"onnx/{MODEL_FILES[dtype]}" if dtype is not None else "a model file"
    there = f"it has {', '.join(present)}" if present else "it holds none of " + ", ".join(MODEL_FILES.values())
    raise ArtifactError(f"{folder} has no {expected}; {there}: choose one of those, or build it")


def available_models(folder: Path) -> dict[str, Path]:
    """dtype -> file, for every model file in `folder`/onnx or `folder` itself, in the order of MODEL_FILES.

    Raises:
        ArtifactError: one is a link out of the folder, or no file.
    """
    found: dict[str, Path] = {}
    for dtype, name in MODEL_FILES.items():
        path = find_file(folder, f"onnx/{name}", ArtifactError) or find_file(folder, name, ArtifactError)
        if path is not None:
            found[dtype] = path
    return found


def resolve_data(
    path: Path, folder: Path, graph: bytes | None = None, given: Collection[str] = ()
) -> tuple[str | bytes, Path]:
    """(the model as a session takes it, the folder that its data files are in).

    onnxruntime refuses a data file that is a link out of that folder, as every file in a hub's cache is. A graph whose
    files are links therefore names what they lead to, once that has been found to be allowed.

    Args:
        folder: the artifact, which `path` is in.
        graph: the bytes of an altered graph, in place of those of `path`.
        given: initializers whose data the session is given otherwise.

    Raises:
        ArtifactError: the file is no ONNX model, or a data file is missing, too short, or lies elsewhere.
    """
    external = scan_file(path) if graph is None else scan(graph, path)
    targets: dict[str, Path] = {}
    needed: dict[str, int] = {}
    for tensor in external:
        if tensor.name not in given:
            needed[tensor.location] = max(needed.get(tensor.location, 0), tensor.end)
    for location, end in needed.items():
        found = data_path(path, location, folder)
        if not found.is_file():
            raise ArtifactError(f"{path} needs the data file {location}, which is not there; put it beside it")
        size = found.stat().st_size
        if size < end:
            raise ArtifactError(
                f"{path}: data file {location} has {size} bytes, the graph reads up to {end}; copy or download it again"
            )
        targets[location] = found.resolve()
    here = path.parent.resolve()
    if all(target == here / location for location, target in targets.items()):
        return (str(path) if graph is None else graph), here
    root = Path(os.path.commonpath([target.parent for target in targets.values()]))
    locations = {location: target.relative_to(root).as_posix() for location, target in targets.items()}
    if graph is not None:
        return rewritten(graph, locations), root
    with opened(path) as data:
        return rewritten(data, locations), root
