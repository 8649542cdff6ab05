"""The owner's side of :mod:`lfm2export.text.sandbox_worker`: a stranger's programs, with limits on time and memory.

One process renders every chat template of its owner. It is started at the first use, or early with
:func:`start_rendering`, so that its start (70 ms) passes while something else is read; a further turn takes under a
millisecond. What takes too long or too much ends it, and the next request starts another.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from lfm2export.errors import Lfm2ExportError
from lfm2export.untrusted.escape import one_line

#: Seconds of processor time for a conversation; a template takes milliseconds.
RENDER_SECONDS = 1.0
RENDER_MEGABYTES = 512

#: The same for reading a tokenizer.json, and then again for encoding a page of text with it.
TOKENIZER_SECONDS = 4.0
TOKENIZER_MEGABYTES = 1024

#: A request may take this many times its processor time on a busy machine.
PATIENCE = 10
#: Seconds for the process to start.
START_SECONDS = 60.0


class SandboxError(Exception):
    """A request failed: `str()` is the reason. refused: the template itself refuses the conversation."""

    def __init__(self, reason: str, *, refused: bool = False) -> None:
        super().__init__(one_line(reason) or "no reason is given")
        self.refused = refused


class Sandbox:
    """One worker process with `megabytes` of memory beyond its libraries; started at its first request."""

    def __init__(self, megabytes: int) -> None:
        self._megabytes = megabytes
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0
        self._ready = False

    def start(self) -> None:
        """Start the process, without waiting for it."""
        with self._lock:
            self._running()

    def ask(self, seconds: float, **request: Any) -> dict[str, Any]:
        """The worker's answer to `request`, that may take `seconds` of processor time.

        Raises:
            SandboxError: it fails, or takes more time or memory than it may.
            TypeError, ValueError: `request` holds what JSON cannot.
        """
        line = json.dumps({**request, "seconds": seconds}) + "\n"
        with self._lock:
            process = self._running()
            if not self._ready:
                if self._answer(process, None, START_SECONDS) is None:
                    raise Lfm2ExportError(
                        "the process that reads templates and tokenizers ends as it starts (exit code "
                        f"{process.returncode}); {sys.executable} -m lfm2export.text.sandbox_worker 512 says why"
                    )
                self._ready = True
            answer = self._answer(process, line, seconds * PATIENCE)
        if answer is None:
            raise SandboxError(self._why_it_ended(process, seconds))
        for kind in ("refused", "failed"):
            if kind in answer:
                raise SandboxError(answer[kind], refused=kind == "refused")
        return answer

    def close(self) -> None:
        """End the process."""
        process, self._process, self._ready = self._process, None, False
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # what it had not read
                    stream.close()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is not None and (self._owner != os.getpid() or self._process.poll() is not None):
            self.close()
        if self._process is None:
            self._process, self._owner, self._ready = _started(self._megabytes), os.getpid(), False
        return self._process

    def _answer(self, process: subprocess.Popen[str], line: str | None, seconds: float) -> dict[str, Any] | None:
        """The next line of `process` after it was sent `line`; None where it ends, or is ended, instead."""
        assert process.stdin is not None and process.stdout is not None
        timer = threading.Timer(seconds, process.kill)
        timer.daemon = True
        timer.start()
        try:
            if line is not None:
                process.stdin.write(line)
                process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        except BaseException:  # interrupted: its answer would be read as the next one's
            self.close()
            raise
        finally:
            timer.cancel()
        if not answer.endswith("\n"):
            self.close()
            return None
        found: dict[str, Any] = json.loads(answer)
        return found

    def _why_it_ended(self, process: subprocess.Popen[str], seconds: float) -> str:
        code = process.returncode
        if code in (-getattr(signal, "SIGPROF", 0), -getattr(signal, "SIGKILL", 0), 1):
            return f"it takes more than {seconds:g} s"
        if code == -getattr(signal, "SIGABRT", 0):
            return f"it takes more than {self._megabytes} MB of memory, or crashes"
        return f"it crashes (exit code {code})"


def _started(megabytes: int) -> subprocess.Popen[str]:
    # The modules that this process sees, the worker sees; -P: and none of the folder that it happens to start in.
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONIOENCODING": "utf-8",
    }
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "lfm2export.text.sandbox_worker", str(megabytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            env=environment,
        )
    except OSError as error:
        raise Lfm2ExportError(
            f"the process that reads templates and tokenizers cannot be started: {error.strerror}; is the machine out "
            "of memory or processes?"
        ) from error


_rendering = Sandbox(RENDER_MEGABYTES)
atexit.register(_rendering.close)


def start_rendering() -> None:
    """Start the process that renders, while something else is read."""
    _rendering.start()


def render(template: str, variables: Mapping[str, Any]) -> str:
    """`template` rendered with `variables`, which are JSON values.

    Raises:
        SandboxError: the template refuses, fails, or takes too much.
    """
    try:
        text: str = _rendering.ask(RENDER_SECONDS, op="render", template=template, variables=dict(variables))["text"]
    except (TypeError, ValueError, RecursionError) as error:
        raise SandboxError(f"the conversation holds what JSON cannot ({error})") from error
    return text


def try_tokenizer(json_text: str, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of `texts` by the tokenizer.json `json_text`, each with what it puts around a text.

    Raises:
        SandboxError: it cannot be read, or encoding or decoding takes too much or fails.
    """
    sandbox = Sandbox(TOKENIZER_MEGABYTES)
    try:
        answer = sandbox.ask(TOKENIZER_SECONDS, op="tokenizer", json=json_text, texts=list(texts))
        tokens: list[list[int]] = answer["tokens"]
        return tokens
    finally:
        sandbox.close()
