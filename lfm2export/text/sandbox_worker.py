"""The process in which a stranger's chat template is rendered, and a stranger's tokenizer tried.

`python -P -m lfm2export.text.sandbox_worker MEGABYTES` reads requests, a line of JSON each, and answers each with one:

    {"op": "render", "template": ..., "variables": {...}, "seconds": ...}  ->  {"text": ...}
    {"op": "tokenizer", "json": ..., "texts": [...], "seconds": ...}       ->  {"tokens": [[...], ...]}
    a template that calls raise_exception                                  ->  {"refused": reason}
    anything else that goes wrong                                          ->  {"failed": reason}

It may use so many MEGABYTES beyond what it has once its libraries are loaded, and so many seconds of processor time a
request; what runs longer ends the process. Both limits are the operating system's where it has them (Linux, and on
macOS that of time); elsewhere a watchdog thread ends what takes long. It ends when its input does.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.utils
from jinja2.sandbox import ImmutableSandboxedEnvironment

#: Characters of a rendered conversation; the longest context of the family takes a sixth of that.
MAX_OUTPUT = 4 << 20
#: Templates that are kept compiled.
KEPT = 16
#: Characters of a reason.
MAX_REASON = 300


class Refusal(jinja2.TemplateError):
    """The template itself refuses the conversation: it calls raise_exception."""


def main(megabytes: int) -> None:
    """Answer requests until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the owner's
    if hasattr(signal, "SIGPROF"):
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
    operations: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"render": _render, "tokenizer": _tokenizer}
    _limit_memory(megabytes)
    out = sys.stdout
    print(json.dumps({"ready": True}), file=out, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        _limit_time(request["seconds"])
        try:
            answer = operations[request["op"]](request)
            text = json.dumps(answer)
        except Refusal as refusal:
            text = json.dumps({"refused": str(refusal)[:MAX_REASON]})
        except BaseException as error:  # a panic of Rust is no Exception
            text = json.dumps({"failed": _reason(error, megabytes)[:MAX_REASON]})
        _limit_time(0)
        print(text, file=out, flush=True)


def _reason(error: BaseException, megabytes: int) -> str:
    if isinstance(error, MemoryError):
        return f"it takes more than {megabytes} MB of memory"
    if isinstance(error, RecursionError):
        return "it calls itself too deeply"
    return f"{type(error).__name__}: {error}"


def _limit_memory(megabytes: int) -> None:
    try:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (used + (megabytes << 20),) * 2)
    except (ImportError, OSError, ValueError):
        pass  # not Linux


def _limit_time(seconds: float) -> None:
    """End the process after so many seconds of work from now; 0 takes the limit away."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)
    elif seconds:
        faulthandler.dump_traceback_later(seconds, exit=True)
    else:
        faulthandler.cancel_dump_traceback_later()


def _render(request: dict[str, Any]) -> dict[str, Any]:
    pieces: list[str] = []
    length = 0
    for piece in _compiled(request["template"]).generate(**request["variables"]):
        pieces.append(piece)
        length += len(piece)
        if length > MAX_OUTPUT:
            raise ValueError(f"its text is longer than {MAX_OUTPUT:,} characters")
    return {"text": "".join(pieces)}


def _tokenizer(request: dict[str, Any]) -> dict[str, Any]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(request["json"])
    tokenizer.no_truncation()
    tokenizer.no_padding()
    _limit_time(request["seconds"])  # reading is bounded by the file's size, encoding is not
    tokens = [tokenizer.encode(text).ids for text in request["texts"]]
    for ids in tokens:
        tokenizer.decode(ids)
    return {"tokens": tokens}


_templates: dict[str, jinja2.Template] = {}


def _compiled(template: str) -> jinja2.Template:
    if template not in _templates:
        if len(_templates) == KEPT:
            del _templates[next(iter(_templates))]
        _templates[template] = _environment().from_string(template)
    return _templates[template]


def _environment() -> ImmutableSandboxedEnvironment:
    """The environment of transformers 5.24, in which templates are untrusted code too."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.globals["dict"] = _TemplateDict()
    environment.globals["namespace"] = _TemplateNamespace
    return environment


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's part for training; here it renders its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _TemplateDict:
    """`dict` without the attributes that lead out of the sandbox."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _TemplateNamespace(jinja2.utils.Namespace):
    """`namespace` that keeps no name with a leading underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # a template may well say namespace(self=...)
        values = dict(*args[1:], **kwargs)
        for name in values:
            _check_public(name)
        jinja2.utils.Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)


def _check_public(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace holds no name such as {name[:40]!r}")


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: Any) -> None:
    raise Refusal(str(message))


if __name__ == "__main__":
    main(int(sys.argv[1]))
