"""The chat page: static files that go beside an artifact, with the libraries they need; any web server can host them.

    ARTIFACT/config.json, onnx/, ...        the model
    ARTIFACT/chat/index.html, chat.mjs, ... the page, which finds the model in the folder above
    ARTIFACT/chat/files.json                what the page must know of the model files to pick one (see `page_data`)
    ARTIFACT/chat/lib/                      Transformers.js and onnxruntime's wasm build

Nothing is loaded from anywhere else. The headers `Cross-Origin-Opener-Policy: same-origin` and
`Cross-Origin-Embedder-Policy: require-corp` let wasm use threads: `page_server` sends them, and on a host that does not
the page's service worker adds them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lfm2export.consumers.locate import JS, SETUP
from lfm2export.consumers.page_data import PageFile, describe_files, encoded
from lfm2export.consumers.page_files import DATA, FOLDER, LIBRARIES, PAGE, copied_libraries, page_files
from lfm2export.errors import ArtifactError, OutputError
from lfm2export.locking import locked
from lfm2export.ownership import foreign_entries, named
from lfm2export.staging import staged_output


@dataclass(frozen=True)
class ChatPage:
    """The page's folder, and the model files that it knows of, by dtype."""

    folder: Path
    files: Mapping[str, PageFile]


def write_chat_page(artifact: Path, *, force: bool = False) -> ChatPage:
    """Put the page beside the model, in `artifact`/chat.

    Raises:
        ArtifactError: `artifact` holds no config.json or no model file, or a damaged one.
        SourceError: its config.json is not LFM2's.
        OutputError: the folder is there already (without `force`), holds something else than a page, cannot be written,
            or the libraries are missing.
        BusyError: another command works in `artifact`.
    """
    if not (artifact / "config.json").is_file():
        raise ArtifactError(f"{artifact} has no config.json; give the folder that a build wrote")
    installed = JS / "node_modules"
    absent = next((name for name in LIBRARIES if not (installed / name).is_file()), None)
    if absent is not None:
        raise OutputError(f"the page needs {absent}, which is not installed; {SETUP}")
    out = artifact / FOLDER
    if out.is_symlink():
        raise OutputError(f"{out} is a link; remove it first")
    if out.exists() and not force:
        raise OutputError(f"{out} exists; add --force to replace it")
    files = describe_files(artifact)
    data = encoded(artifact, files)
    try:
        with locked(artifact), staged_output(out, force=force, replaceable=_check_page) as staged:
            shutil.copytree(PAGE, staged.folder, dirs_exist_ok=True)
            (staged.folder / DATA).write_bytes(data)
            (staged.folder / "lib").mkdir()
            for name, library in copied_libraries().items():
                shutil.copyfile(installed / library, staged.folder / name)
    except OSError as error:
        raise OutputError(f"{out} cannot be written ({error.strerror or error}); check the folder") from error
    return ChatPage(out, files)


def _check_page(folder: Path) -> None:
    foreign = foreign_entries(folder, page_files())
    if foreign:
        raise OutputError(
            f"{folder} holds what is not of the page ({named(foreign)}), and --force would delete it; move it away"
        )
