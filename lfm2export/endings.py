"""How an exception ends the command: its exit code and the one line that says so.

Input, usage and the machine's limits are the user's to mend: exit code 2. What is neither is a fault of this package
and asks to be reported, with the versions that it ran with: exit code 70.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import traceback
from collections.abc import Iterator
from importlib import metadata

from lfm2export import ISSUES, __version__
from lfm2export.errors import FaultError, Lfm2ExportError
from lfm2export.exit_codes import ExitCode
from lfm2export.untrusted.escape import on_terminal, one_line

#: What decides how a build comes out, and so belongs into a report of a fault.
LIBRARIES = ("torch", "transformers", "onnx", "onnxruntime", "tokenizers", "numpy")

#: How libraries that have no exception for it (torch, onnxruntime) say that memory ran out.
_NO_MEMORY = re.compile(
    r"(can'?t|cannot|could not|failed to|unable to) allocate|bad[_ ]?alloc|out of memory", re.IGNORECASE
)

_REMEDIES = {
    errno.ENOSPC: "free some space, or choose another disk",
    errno.EDQUOT: "free some space, or choose another disk",
    errno.EROFS: "choose another place",
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.ENOENT: "check the name",
    errno.ENOTDIR: "check the name",
    errno.EISDIR: "give a file",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "remove the circle of links",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
}


def ending(error: BaseException) -> tuple[ExitCode, str | None]:
    """The exit code that `error` stands for, and the line to print on stderr, if any."""
    if any(isinstance(one, KeyboardInterrupt) for one in _chain(error)):  # an import that it hits may say ImportError
        return ExitCode.INTERRUPTED, "Interrupted."
    if isinstance(error, BrokenPipeError):
        return ExitCode.OUTPUT_CLOSED, None
    if isinstance(error, Lfm2ExportError) and not isinstance(error, FaultError):
        return ExitCode.BAD_INPUT, _error(str(error))
    if _is_lack_of_memory(error):
        return ExitCode.BAD_INPUT, _error(
            f"not enough memory ({_named(error)}); end other programs, use fewer --threads, or a machine with more"
        )
    if isinstance(error, OSError) and error.errno is not None:
        return ExitCode.BAD_INPUT, _error(_refused(error))
    return ExitCode.FAULT, _error(
        f"this is a fault of lfm2-export itself ({_named(error)}); please report it at {ISSUES} with the command and "
        f"this line ({versions()}); --traceback shows where it is"
    )


def full_traceback(error: BaseException) -> str:
    """The traceback of `error`, fit for a terminal."""
    return on_terminal("".join(traceback.format_exception(error))).rstrip("\n")


def versions() -> str:
    """What is running, in words; nothing is imported for it."""
    found = [f"lfm2export {__version__}", f"Python {platform.python_version()}"]
    for name in LIBRARIES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} missing")
    return ", ".join([*found, f"{platform.system()} {platform.machine()}"])


def _error(words: str) -> str:
    return f"Error: {' '.join(one_line(words).split())}"


def _named(error: BaseException) -> str:
    """The type, unless the message is made for users, and what it says, cut."""
    said = " ".join(str(error).split())
    said = said if len(said) <= 300 else f"{said[:297]}..."
    if isinstance(error, Lfm2ExportError):
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and what it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_lack_of_memory(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)) is not None


def _refused(error: OSError) -> str:
    assert error.errno is not None
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    what = error.strerror or os.strerror(error.errno)
    where = " and ".join(names) if names else "the system refused"
    return f"{where}: {what}; {_REMEDIES.get(error.errno, 'mend that, and try again')}"
