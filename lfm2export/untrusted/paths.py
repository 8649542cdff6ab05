"""Whether a name from outside may become a path, and whether a link may be followed.

A name is letters, digits, `_`, `-` and `.`; a path is such names, relative, below its folder. A link is followed when
what it leads to lies inside the folder, or in the blobs of the hub cache that the folder is a snapshot of:

    models--owner--name/blobs/<hash>                    the content
    models--owner--name/snapshots/<commit>/config.json  a link to it
"""

from __future__ import annotations

import re
from pathlib import Path

from lfm2export.errors import Lfm2ExportError

#: The longest name that common file systems hold, in bytes; a name that passes is ASCII.
MAX_NAME = 255
#: The longest path below a folder: file systems end at some thousands, with the folder's own.
MAX_PATH = 1024

_LABEL = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.+-]*", re.ASCII)
#: Names that Windows keeps for devices, with any suffix.
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.ASCII | re.IGNORECASE)


def checked_label(name: object, what: str, error: type[Lfm2ExportError]) -> str:
    """`name`, that becomes part of a file's name: at most 64 letters, digits, `_`, `-`.

    Raises:
        error: it is something else; `what` says whose name it is, such as "chat template".
    """
    if not isinstance(name, str) or not _LABEL.fullmatch(name) or _DEVICE.fullmatch(name):
        raise error(
            f"{what} is named {shown(name)}, expected at most 64 letters, digits, '_' and '-'; such a name could lead "
            "out of the folder: rename it, or do not trust its source"
        )
    return name


def is_plain_path(name: object) -> bool:
    """Whether `name` is a relative path of plain names ("a.bin", "b/c-1.json") that cannot leave its folder."""
    if not isinstance(name, str) or len(name) > MAX_PATH:
        return False
    return all(
        _PART.fullmatch(part) and len(part) <= MAX_NAME and not part.endswith(".") and not _DEVICE.fullmatch(part)
        for part in name.split("/")
    )


def path_inside(folder: Path, name: object, what: str, error: type[Lfm2ExportError]) -> Path:
    """The path of `name` in `folder`; it need not exist.

    Raises:
        error: `name` is no plain relative path, or leads through a link out of the folder; `what` says who names it,
            such as "model.safetensors.index.json".
    """
    if not isinstance(name, str) or not is_plain_path(name):
        raise error(
            f"{what} names the file {shown(name)}, expected a plain name inside {folder}; do not trust it: copy or "
            "download it again"
        )
    return checked_link(folder / name, folder, error)


def find_file(folder: Path, name: str, error: type[Lfm2ExportError]) -> Path | None:
    """`folder`/`name` if it is a file, None if there is none. `name` is the caller's own, not a stranger's.

    Raises:
        error: it is a link that leads out of the folder, or is no regular file.
    """
    path = folder / name
    try:
        if path.is_file():
            return checked_link(path, folder, error)
        if path.is_symlink() or path.exists():
            kind = "a folder" if path.is_dir() else "no regular file" if path.exists() else "a link to nothing"
            raise error(f"{path} is {kind}, expected a file; copy or download it again")
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror}; check that it may be read") from problem
    return None


def checked_link(path: Path, folder: Path, error: type[Lfm2ExportError]) -> Path:
    """`path`, when every link on its way below `folder` may be followed.

    Raises:
        error: what it leads to lies neither inside the folder nor in the blobs of its hub cache.
    """
    try:
        root, target = folder.resolve(), path.resolve()
    except (OSError, RuntimeError, ValueError) as problem:  # a circle of links, a name too long, a zero byte
        reason = getattr(problem, "strerror", None) or shown(str(problem), 200)
        raise error(f"{path} cannot be followed ({reason}); copy or download it again") from problem
    if target.is_relative_to(root) or _in_blobs(target, root):
        return path
    raise error(
        f"{path} is a link to {named(str(target))}, outside {folder}; links are followed inside "
        "the folder and into the hub cache's blobs only: put the file itself there"
    )


def is_utf8(path: Path) -> bool:
    """Whether `path`, and what it leads to, are UTF-8; libraries in C++ take no other names."""
    both = f"{path} {path.resolve()}"
    try:
        both.encode()
    except UnicodeEncodeError:
        return False
    return True


def anywhere(path: Path) -> Path:
    """The folder to hold a file to that the user named: its links are the user's own, and may lead anywhere."""
    return Path(path.absolute().anchor)


def _in_blobs(target: Path, root: Path) -> bool:
    """Whether `target` is content of the hub cache that `root` is a snapshot of, or a folder in one."""
    snapshots = (place for place in root.parents if place.name == "snapshots")
    return any(target.is_relative_to(place.parent / "blobs") for place in snapshots)


def shown(value: object, limit: int = 80) -> str:
    """`value` for an error message: its repr, cut."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def named(name: str) -> str:
    """`name`, of a tensor or a file, for an error message: as it is if it is short and prints, else its repr, cut."""
    return name if len(name) <= 200 and name.isprintable() else shown(name)
