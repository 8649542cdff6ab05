"""The type of a mutator, and strings that have hurt somebody's reader."""

from __future__ import annotations

import random
from collections.abc import Callable

from benchmarks.faults.content import Content

Mutator = Callable[[bytes, random.Random], tuple[Content, str]]

#: Beside every scratch folder lies this folder, which no reader may open.
OUTSIDE = "outside"

PATHS = (
    f"../{OUTSIDE}/secret.txt",
    f"../../{OUTSIDE}/secret.txt",
    f"x/../../{OUTSIDE}/secret.txt",
    f"..\\{OUTSIDE}\\secret.txt",
    "/etc/passwd",
    "/dev/zero",
    "/dev/stdin",
    "file:///etc/passwd",
    "C:\\Windows\\x",
    "//host/share",
    "~/x",
    "..",
    ".",
    "",
    "/",
    "a/",
    "con",
    "NUL.txt",
    "a:b",
    "a\0b",
    "x" * 300,
    "a/" * 3000 + "b",
    "-rf",
)

STRINGS = (
    "",
    " ",
    "\0",
    "\n",
    "a\nb\r\nc",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x85",
    "\u2028",
    "\u202egnp",
    "\ufeff",
    "\ufffd",
    "\U0001f600" * 40,
    "[/x]",
    "[red]",
    "{{ 1/0 }}",
    "{% raw %}",
    "<script>alert(1)</script>",
    "--><!--",
    "`x` | y | **z**",
    "%s%n%d",
    "$(id)",
    "__import__('os').system('id')",
    "!!python/object/apply:os.system ['id']",
    "<|im_end|>",
    "<!-- parity:begin -->",
    "0" * 400,
    "x" * 3000,
    "\u00e4" * 70_000,
    *PATHS,
)
