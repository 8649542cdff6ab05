"""What in a folder this tool wrote, and may therefore replace; all else is somebody's.

An artifact is a folder with a build.json of this tool. Its own are the files which that lists, and those which commands
add later: parity.json, .md and .html, consumers.json, chat/. Links are never its own, wherever they lead.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from lfm2export.atomic import is_partial
from lfm2export.consumers.page_files import FOLDER as CHAT
from lfm2export.consumers.page_files import page_files
from lfm2export.errors import ArtifactError, OutputError
from lfm2export.package.manifest import FILE, UNHASHED, measure_file, read_manifest
from lfm2export.untrusted.escape import one_line

TOOL = "lfm2export"

#: Files up to this size are hashed to tell whether they were edited; of larger ones, the models, the size is compared.
HASHED_BYTES = 8 << 20

#: Names in an error message; the rest is counted.
NAMED = 4


def check_replaceable(folder: Path) -> None:
    """Whether all that `folder` holds is this tool's, so that a new artifact may take its place. Empty is fine.

    Raises:
        OutputError: it holds something else; the message names it.
    """
    if not any(folder.iterdir()):
        return
    try:
        manifest, reason = _own_manifest(folder), f"it has no {FILE}"
    except ArtifactError as error:
        manifest, reason = None, str(error)
    if manifest is None:
        entries = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
        raise OutputError(
            f"{folder} is neither empty nor an artifact of this tool ({reason}), so --force does not replace it and "
            f"what it holds ({named(entries)}); choose another output with -o"
        )
    foreign = foreign_entries(folder, [*manifest["files"], *added_files()])
    if foreign:
        raise OutputError(
            f"{folder} holds what is not of its build ({named(foreign)}), and --force would delete it; move it away, "
            "or choose another output with -o"
        )


def added_files() -> frozenset[str]:
    """Names of the files that commands add to an artifact after its build."""
    return frozenset(UNHASHED) | {f"{CHAT}/{name}" for name in page_files()}


def foreign_entries(folder: Path, own: Collection[str]) -> list[str]:
    """Names of all that `folder` holds beside the files `own` (and what a killed write of them left), sorted.

    A folder without a file of `own` is named with a slash at its end, and what it holds is not.
    """
    files = set(own)
    folders = {str(parent) for name in files for parent in PurePosixPath(name).parents}
    return sorted(_foreign(folder, "", files, folders))


def _foreign(folder: Path, prefix: str, files: set[str], folders: set[str]) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                if name in folders:
                    yield from _foreign(folder / entry.name, f"{name}/", files, folders)
                elif name not in _CHAT_LEFTOVERS:
                    yield f"{name}/"
            elif not entry.is_file(follow_symlinks=False) or not (name in files or is_partial(entry.name)):
                yield name


def closed_folder(folder: Path) -> Path | None:
    """The first of `folder` and all folders in it whose entries this user cannot remove; None where there is none."""
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return folder
    with os.scandir(folder) as entries:
        inner = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    return next((closed for name in inner if (closed := closed_folder(folder / name)) is not None), None)


#: Where `chat-page` makes the page and puts the old one: see `staging`.
_CHAT_LEFTOVERS = {f".{CHAT}.lfm2export.partial", f".{CHAT}.lfm2export.old"}


def edited_files(folder: Path) -> tuple[str, ...]:
    """Files of the artifact in `folder` that are not as they were built, as far as their size or, up to 8 MiB, their
    hash tells; the card's parity table does not count. Empty where there is no artifact.
    """
    try:
        manifest = _own_manifest(folder)
    except ArtifactError:
        return ()
    listed = manifest["files"] if manifest is not None else {}
    return tuple(name for name, entry in listed.items() if (folder / name).is_file() and _edited(folder, name, entry))


def _edited(folder: Path, name: str, entry: dict[str, Any]) -> bool:
    size = (folder / name).stat().st_size
    if size > HASHED_BYTES:
        return bool(size != entry["bytes"])
    try:
        return measure_file(folder, name) != (entry["bytes"], entry["sha256"])
    except ArtifactError:  # a card that no build wrote
        return True


def named(names: Sequence[str]) -> str:
    """The first few of `names`, and how many more there are."""
    shown = ", ".join(one_line(name) for name in names[:NAMED])
    return f"{shown} and {len(names) - NAMED} more" if len(names) > NAMED else shown


def _own_manifest(folder: Path) -> dict[str, Any] | None:
    """build.json of `folder`; None where there is none.

    Raises:
        ArtifactError: it is damaged, or another tool's.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    tool = manifest.get("tool")
    if not isinstance(tool, dict) or tool.get("name") != TOOL:
        raise ArtifactError(f"its {FILE} is another tool's")
    return manifest
