"""Something else in the place of a file: nothing, a folder, a pipe, links that lead out, round, or nowhere."""

from __future__ import annotations

import random

from benchmarks.faults.content import Content
from benchmarks.faults.mutators.kinds import OUTSIDE, Mutator

LINKS = (
    f"../{OUTSIDE}/secret.txt",
    f"../{OUTSIDE}",
    f"../../{OUTSIDE}/secret.txt",
    "/etc/passwd",
    "/dev/zero",
    "/dev/full",
    "/proc/self/mem",
    "/proc/self/environ",
    "/nowhere/at/all",
    ".",
    "..",
    "loop",
    "config.json",
    "x" * 255,
)


def missing(data: bytes, dice: random.Random) -> tuple[Content, str]:
    return Content(kind="missing"), "gone"


def folder(data: bytes, dice: random.Random) -> tuple[Content, str]:
    return Content(kind="folder"), "a folder"


def pipe(data: bytes, dice: random.Random) -> tuple[Content, str]:
    return Content(kind="pipe"), "a named pipe that nobody writes to"


def socket(data: bytes, dice: random.Random) -> tuple[Content, str]:
    return Content(kind="socket"), "a socket"


def link(data: bytes, dice: random.Random) -> tuple[Content, str]:
    target = dice.choice(LINKS)
    return Content(kind="link", target=target), f"a link to {target}"


def empty(data: bytes, dice: random.Random) -> tuple[Content, str]:
    return Content(), "empty"


def huge(data: bytes, dice: random.Random) -> tuple[Content, str]:
    return Content(data + b" " * 70_000_000), "70 MB of spaces after it"


def device(data: bytes, dice: random.Random) -> tuple[Content, str]:
    target = dice.choice(("/dev/zero", "/dev/full", "/nowhere/at/all"))
    return Content(kind="link", target=target), f"a link to {target}"


#: For files that the user names: links of theirs may lead anywhere, and a pipe is theirs to fill.
OWN: dict[str, Mutator] = {"missing": missing, "folder": folder, "device": device, "empty": empty, "huge": huge}

MUTATORS: dict[str, Mutator] = {
    "missing": missing,
    "folder": folder,
    "pipe": pipe,
    "socket": socket,
    "link": link,
    "link_again": link,
    "empty": empty,
    "huge": huge,
}
