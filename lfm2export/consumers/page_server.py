"""An artifact and its chat page over HTTP, with the headers that isolate the page from other sites, and so its threads.

Only files below the served folder are answered, by plain names (`untrusted.paths`): nothing that begins with a dot, no
list of a folder, no link that leads out. What a browser sends is nobody's word: a name in it is never written back.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
import socketserver
import stat
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import unquote

from lfm2export.consumers.page_files import FOLDER
from lfm2export.errors import ArtifactError, Lfm2ExportError
from lfm2export.untrusted.paths import is_plain_path, path_inside

PORT = 8000
HOST = "127.0.0.1"

#: Seconds that a browser may be silent, and connections at once.
TIMEOUT = 30
MOST_CONNECTIONS = 64

HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
    "Accept-Ranges": "bytes",
}

#: The page names its own policy. Other documents of an artifact, such as parity.html, run nothing.
PAGE_POLICY = "frame-ancestors 'none'"
DOCUMENT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".jinja": "text/plain; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".md": "text/plain; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
}
OTHER_TYPE = "application/octet-stream"

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)
_QUERY = re.compile(r"\?[\w=&.-]{1,200}$", re.ASCII)
_HOST = re.compile(r"(\[[0-9a-f:]+\]|[a-z0-9.-]+)(:\d+)?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Site:
    """What is served: `root`, and where below it the page begins, such as "/chat/"."""

    root: Path
    page: str


def find_site(folder: Path) -> Site:
    """The site of `folder`, which is an artifact with a page, or the page itself.

    Raises:
        ArtifactError: it is neither.
    """
    if (folder / "config.json").is_file() and (folder / FOLDER / "index.html").is_file():
        return Site(folder.resolve(), f"/{FOLDER}/")
    page = folder.resolve()
    if (
        not (page / "config.json").exists()
        and (page / "index.html").is_file()
        and (page.parent / "config.json").is_file()
        and is_plain_path(page.name)
    ):
        return Site(page.parent, f"/{page.name}/")
    if (folder / "config.json").is_file():
        raise ArtifactError(f"{folder} has no chat page; write it first: lfm2-export chat-page {folder}")
    raise ArtifactError(f"{folder} is neither an artifact nor its chat page; give the folder that a build wrote")


class PageServer(socketserver.ThreadingMixIn, HTTPServer):
    """Listens when it is made; `serve_forever` answers. `address` is where a browser of this machine finds the page.

    Raises:
        Lfm2ExportError: the port is in use, or not this user's to take, or `host` is no address of this machine.
    """

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = os.name == "posix"  # elsewhere it would let two servers have one port

    def __init__(self, site: Site, host: str = HOST, port: int = PORT) -> None:
        self.site = site
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            self.address_family = found[0][0]
            super().__init__(found[0][4][:2], _Handler)  # type: ignore[arg-type]
        except (OSError, UnicodeError) as error:
            raise Lfm2ExportError(_refused(error, host, port)) from error
        bound = ipaddress.ip_address(str(self.server_address[0]))
        self.public = not bound.is_loopback
        shown = "127.0.0.1" if bound.is_unspecified else f"[{bound}]" if bound.version == 6 else str(bound)
        self.hosts = None if self.public else {"localhost", "127.0.0.1", "[::1]", shown, host.lower()}
        self.address = f"http://{shown}:{self.server_port}{site.page}"

    def server_bind(self) -> None:
        """As a plain TCP server: HTTPServer would ask for this machine's name, which may take a network's time."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread of its own, unless there are too many: such a connection ends at once."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away is no error of this program."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def _refused(error: Exception, host: str, port: int) -> str:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return f"port {port} is in use; give another one with --port, or 0 for any that is free"
    if number == errno.EACCES:
        return f"port {port} is not yours to listen on; give one from 1024 on with --port"
    return f"{host} is no address of this machine ({getattr(error, 'strerror', None) or error}); give another --host"


def serve(
    folder: Path, host: str = HOST, port: int = PORT, listening: Callable[[PageServer], None] | None = None
) -> None:
    """Serve the page of `folder` until an exception, such as a Ctrl-C's, ends it; `listening` is told when it begins.

    Raises:
        ArtifactError: `folder` has no page.
        Lfm2ExportError: as :class:`PageServer`.
    """
    with PageServer(find_site(folder), host, port) as server:
        if listening is not None:
            listening(server)
        server.serve_forever()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT
    server: PageServer

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def version_string(self) -> str:
        return "lfm2export"

    def log_message(self, format: str, *args: Any) -> None:
        """The library is silent."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """One line of this program's own words; `message` may quote the request."""
        self.close_connection = True
        self.request_version = self.protocol_version  # what could not be read has none, and would get no headers
        self._say(HTTPStatus(code))

    def _answer(self) -> None:
        if self.headers.get("Content-Length") not in (None, "0") or self.headers.get("Transfer-Encoding") is not None:
            self.close_connection = True  # what follows is a body, which nobody reads
        if not self._is_for_here():
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
            return
        site = self.server.site
        target = self.path.split("?", 1)[0].split("#", 1)[0]
        if target in ("/", site.page.rstrip("/")):
            query = _QUERY.search(self.path)
            self._say(HTTPStatus.FOUND, {"Location": site.page + (query[0] if query is not None else "")})
            return
        if self.headers.get("Service-Worker") is not None:
            # Pages are isolated by headers here. A worker would stay, and answer for the next artifact at this address.
            self._say(HTTPStatus.NOT_FOUND)
            return
        opened = _open(site, target)
        if opened is None:
            self._say(HTTPStatus.NOT_FOUND)
            return
        with opened[1] as file:
            self._send(opened[0], file, os.fstat(file.fileno()))

    def _is_for_here(self) -> bool:
        """Whether the request names this machine: else another site's name leads here, and its scripts would read."""
        named = self.headers.get("Host")
        if self.server.hosts is None or named is None:
            return True
        found = _HOST.fullmatch(named.strip())
        return found is not None and found[1].lower() in self.server.hosts

    def _send(self, name: str, file: BinaryIO, found: os.stat_result) -> None:
        tag = f'"{found.st_size:x}-{found.st_mtime_ns:x}"'
        headers = {"ETag": tag, "Content-Type": TYPES.get(PurePosixPath(name).suffix.lower(), OTHER_TYPE)}
        if headers["Content-Type"].startswith("text/html"):
            own = f"/{name}" == f"{self.server.site.page}index.html"
            headers["Content-Security-Policy"] = PAGE_POLICY if own else DOCUMENT_POLICY
        if self.headers.get("If-None-Match") == tag:
            self._head(HTTPStatus.NOT_MODIFIED, {"ETag": tag})
            return
        asked = self.headers.get("Range") if self.headers.get("If-Range") in (None, tag) else None
        part = byte_range(asked, found.st_size)
        if part is None:
            self._say(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, {"Content-Range": f"bytes */{found.st_size}"})
            return
        first, count = part
        headers["Content-Length"] = str(count)
        if asked is not None and part != (0, found.st_size):
            headers["Content-Range"] = f"bytes {first}-{first + count - 1}/{found.st_size}"
        partial = "Content-Range" in headers
        self._head(HTTPStatus.PARTIAL_CONTENT if partial else HTTPStatus.OK, headers)
        if self.command == "HEAD" or not count:
            return
        self.wfile.flush()
        if self.connection.sendfile(file, first, count) < count:
            self.close_connection = True  # the file became shorter

    def _say(self, status: HTTPStatus, headers: dict[str, str] | None = None) -> None:
        """`status` with its name as a text."""
        text = f"{status.phrase}\n".encode()
        own = {"Content-Type": TYPES[".txt"], "Content-Length": str(len(text))}
        self._head(status, {**own, **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(text)

    def _head(self, status: HTTPStatus, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, **headers}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()


def byte_range(asked: str | None, size: int) -> tuple[int, int] | None:
    """(first byte, count) of a file of `size` bytes: all of it where nothing, or several ranges, or no range is `asked`
    for; None where the range lies behind its end.
    """
    found = _RANGE.fullmatch(asked) if asked is not None else None
    if found is None or not (found[1] or found[2]):
        return 0, size
    if not found[1]:
        count = min(int(found[2]), size)
        return (size - count, count) if count else None
    first = int(found[1])
    last = min(int(found[2]), size - 1) if found[2] else size - 1
    if first >= size:
        return None
    return (first, last - first + 1) if first <= last else (0, size)


def _open(site: Site, target: str) -> tuple[str, BinaryIO] | None:
    """The name and the file that `target`, a path of a request, means; None where there is none to be had."""
    try:
        name = unquote(target, errors="strict").removeprefix("/")
        name = f"{name}index.html" if f"/{name}" == site.page else name
        path = path_inside(site.root, name, "the request", ArtifactError)
        if not target.startswith("/") or not path.is_file():
            return None
        file = path.open("rb")
    except (ArtifactError, OSError, ValueError):
        return None
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return name, file
    file.close()
    return None
