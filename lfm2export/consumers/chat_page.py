"""The chat page: static files that go beside an artifact, with the libraries they need; any web server can host them.

    ARTIFACT/config.json, onnx/, ...        the model
    ARTIFACT/chat/index.html, chat.mjs, ... the page, which finds the model in the folder above
    ARTIFACT/chat/lib/                      Transformers.js and onnxruntime's wasm build

Nothing is loaded from anywhere else. A server that sends the headers `Cross-Origin-Opener-Policy: same-origin` and
`Cross-Origin-Embedder-Policy: require-corp` lets wasm use threads; without them it uses one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from lfm2export.consumers.locate import HERE, JS, SETUP
from lfm2export.errors import ArtifactError, OutputError

PAGE = HERE / "web"
FOLDER = "chat"

#: Files of the installed packages that the page loads, and their licences.
LIBRARIES = (
    "@huggingface/transformers/dist/transformers.min.js",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.wasm",
)
LICENSES = ("@huggingface/transformers/LICENSE",)


def write_chat_page(artifact: Path, *, force: bool = False) -> Path:
    """Put the page beside the model, in `artifact`/chat; returns that folder.

    Raises:
        ArtifactError: `artifact` holds no config.json.
        OutputError: the folder is there already (without `force`), cannot be written, or the libraries are missing.
    """
    if not (artifact / "config.json").is_file():
        raise ArtifactError(f"{artifact} has no config.json; give the folder that a build wrote")
    installed = JS / "node_modules"
    absent = next((name for name in LIBRARIES if not (installed / name).is_file()), None)
    if absent is not None:
        raise OutputError(f"the page needs {absent}, which is not installed; {SETUP}")
    out = artifact / FOLDER
    if out.exists() and not force:
        raise OutputError(f"{out} exists; add --force to replace it")
    try:
        if out.exists():
            shutil.rmtree(out)
        shutil.copytree(PAGE, out)
        (out / "lib").mkdir()
        for name in LIBRARIES:
            shutil.copyfile(installed / name, out / "lib" / Path(name).name)
        for name in LICENSES:
            shutil.copyfile(installed / name, out / "lib" / f"LICENSE.{name.split('/')[-2]}")
    except OSError as error:
        raise OutputError(f"{out} cannot be written ({error.strerror or error}); check the folder") from error
    return out
