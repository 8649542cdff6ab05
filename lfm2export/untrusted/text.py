"""The one reader of UTF-8 texts from outside: chat templates, licences, model cards, prompts."""

from __future__ import annotations

from pathlib import Path

from lfm2export.errors import Lfm2ExportError
from lfm2export.untrusted.paths import checked_link

#: Bytes of a template, a licence or a card; those of the family have at most some ten thousand.
MAX_TEXT_BYTES = 4 << 20

#: What repairs a file of a checkpoint or an artifact.
COPY_AGAIN = "copy or download it again"

_MARK = b"\xef\xbb\xbf"


def read_bytes(
    path: Path, error: type[Lfm2ExportError], limit: int, *, folder: Path | None = None, remedy: str = COPY_AGAIN
) -> bytes:
    """At most `limit` bytes: all of `path`, which lies in `folder` (by default the one it is in).

    A pipe or a device is not read: it may never end.

    Raises:
        error: it is missing, is a link out of the folder, is longer, or cannot be read; `remedy` says what to do.
    """
    checked_link(path, path.parent if folder is None else folder, error)
    try:
        if not path.is_file():
            raise error(
                f"{path} is {'a folder' if path.is_dir() else 'a pipe or a device'}, expected a file; write what it "
                "gives to a file, and name that"
                if path.exists()
                else f"{path} is missing; {remedy}"
            )
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror}; check that it exists and may be read") from problem
    if len(data) > limit:
        raise error(f"{path} has more than {limit:,} bytes, expected at most that many; {remedy}")
    return data


def without_mark(data: bytes) -> bytes:
    """`data` without a byte-order mark."""
    return data.removeprefix(_MARK)


def decode(data: bytes, what: object, error: type[Lfm2ExportError], remedy: str) -> str:
    """`data` as UTF-8 without a byte-order mark; line ends stay as they are.

    Raises:
        error: it is in another encoding; `what` names it, `remedy` says what to do.
    """
    data = without_mark(data)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as problem:
        named = (
            "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else f"byte {problem.start} is {data[problem.start]:#x}"
        )
        raise error(f"{what} is not UTF-8 ({named}); {remedy}") from problem


def read_text(
    path: Path,
    error: type[Lfm2ExportError],
    *,
    folder: Path | None = None,
    limit: int = MAX_TEXT_BYTES,
    remedy: str | None = None,
) -> str:
    """The UTF-8 text of `path`, without a byte-order mark; see :func:`read_bytes` and :func:`decode`."""
    data = read_bytes(path, error, limit, folder=folder, remedy=remedy or COPY_AGAIN)
    return decode(data, path, error, remedy or "save it as UTF-8")
