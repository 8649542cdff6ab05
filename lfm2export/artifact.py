"""Which model files an artifact folder has, and which one to open. It imports no runtime."""

from __future__ import annotations

from pathlib import Path

from lfm2export.contract import MODEL_FILES
from lfm2export.errors import ArtifactError

#: Which file to open when none is asked for: what the model card runs first, then the small ones, then the exact ones.
PREFERENCE = ("q4", "q4f16", "q8", "fp16", "fp32")


def find_model(folder: Path, dtype: str | None = None) -> Path:
    """The ONNX file of `dtype` in `folder` or its onnx/ folder; without a dtype the first of :data:`PREFERENCE`.

    Raises:
        ArtifactError: no such folder, dtype or file; the message lists what is there.
    """
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder; give the folder that a build wrote")
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
    """dtype -> file, for every model file in `folder`/onnx or `folder` itself, in the order of MODEL_FILES."""
    found: dict[str, Path] = {}
    for dtype, name in MODEL_FILES.items():
        for path in (folder / "onnx" / name, folder / name):
            if path.is_file() and dtype not in found:
                found[dtype] = path
    return found
