"""The files of the chat page: what is copied, from where, and what its folder then holds."""

from __future__ import annotations

from pathlib import Path

from lfm2export.consumers.locate import HERE

PAGE = HERE / "web"
FOLDER = "chat"
#: What the page knows of the model files beside it (see `page_data`).
DATA = "files.json"

#: Files of the installed packages that the page loads, and their licences.
LIBRARIES = (
    "@huggingface/transformers/dist/transformers.min.js",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.wasm",
)
LICENSES = ("@huggingface/transformers/LICENSE",)


def copied_libraries() -> dict[str, str]:
    """Name in the page's folder -> file below node_modules."""
    code = {f"lib/{Path(name).name}": name for name in LIBRARIES}
    return code | {f"lib/LICENSE.{name.split('/')[-2]}": name for name in LICENSES}


def page_files() -> frozenset[str]:
    """Names of all files in the page's folder."""
    own = (path.relative_to(PAGE).as_posix() for path in PAGE.rglob("*") if path.is_file())
    return frozenset([*own, *copied_libraries(), DATA])
