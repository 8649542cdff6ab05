"""The server of the chat page: what it sends, and what a stranger's request does not get."""

from __future__ import annotations

import http.client
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lfm2export.consumers import page_server
from lfm2export.consumers.page_server import PageServer, byte_range, find_site
from lfm2export.errors import ArtifactError, Lfm2ExportError

PAGE = "<!doctype html><title>page</title>"
WEIGHTS = bytes(range(256)) * 40


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    for name, content in {
        "config.json": b"{}",
        "parity.html": b"<p>parity",
        "chat/index.html": PAGE.encode(),
        "chat/chat.mjs": b"export {};",
        "chat/lib/ort.wasm": b"\0asm",
        "onnx/model_q4.onnx_data": WEIGHTS,
        ".secret": b"mine",
        "chat/.secret": b"mine",
        "with space.txt": b"x",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (tmp_path / "outside.txt").write_text("outside")
    return folder


@pytest.fixture
def server(artifact: Path) -> Iterator[PageServer]:
    with PageServer(find_site(artifact), port=0) as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.01,))
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def ask(
    server: PageServer, path: str, headers: dict[str, str] | None = None, method: str = "GET"
) -> tuple[int, dict[str, str], bytes]:
    """(status, headers in lower case, body); `path` goes out as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.putrequest(method, path, skip_host="Host" in (headers or {}))
    for name, value in (headers or {}).items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    connection.close()
    return found


def test_the_page_is_isolated_and_has_its_types(server: PageServer) -> None:
    assert server.address == f"http://127.0.0.1:{server.server_port}/chat/"
    types = {
        "/chat/": "text/html; charset=utf-8",
        "/chat/index.html": "text/html; charset=utf-8",
        "/chat/chat.mjs": "text/javascript; charset=utf-8",
        "/chat/lib/ort.wasm": "application/wasm",
        "/config.json": "application/json",
        "/onnx/model_q4.onnx_data": "application/octet-stream",
    }
    for path, kind in types.items():
        status, headers, body = ask(server, path)
        assert (status, headers["content-type"]) == (200, kind)
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["cross-origin-embedder-policy"] == "require-corp"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["x-content-type-options"] == "nosniff"
        assert int(headers["content-length"]) == len(body) > 0
    assert ask(server, "/chat/?device=wasm")[2] == PAGE.encode()


@pytest.mark.parametrize(
    ("path", "query"),
    [("/", ""), ("/chat", ""), ("/?dtype=q8&threads=2", "?dtype=q8&threads=2"), ("/chat?//other.host/", "")],
)
def test_the_way_to_the_page(server: PageServer, path: str, query: str) -> None:
    status, headers, _ = ask(server, path)
    assert (status, headers["location"]) == (302, f"/chat/{query}")


def test_documents_that_are_not_the_page_run_nothing(artifact: Path, server: PageServer) -> None:
    policy = ask(server, "/parity.html")[1]["content-security-policy"]
    assert "default-src 'none'" in policy and "sandbox" in policy and "script" not in policy
    assert ask(server, "/chat/")[1]["content-security-policy"] == "frame-ancestors 'none'"
    (artifact / "chat" / "other.html").write_text("<script src='https://other.host/'></script>")
    assert ask(server, "/chat/other.html")[1]["content-security-policy"] == policy


def test_no_script_becomes_a_worker_that_stays(server: PageServer) -> None:
    assert ask(server, "/chat/chat.mjs")[0] == 200
    assert ask(server, "/chat/chat.mjs", {"Service-Worker": "script"})[0] == 404


@pytest.mark.parametrize(
    "path",
    [
        "/outside.txt",
        "/../outside.txt",
        "/%2e%2e/outside.txt",
        "/chat/../../outside.txt",
        "/chat/..%2f..%2foutside.txt",
        "/chat/..%5c..%5coutside.txt",
        "/%252e%252e/outside.txt",
        "//outside.txt",
        "/./config.json",
        "/chat//index.html",
        "/config.json/",
        "/config.json%00",
        "/config.json%00.html",
        "/.secret",
        "/chat/.secret",
        "/%2esecret",
        "/onnx/",
        "/onnx",
        "/chat/lib/",
        "/nothing",
        "/%ff",
        "/link.txt",
        "/linked/outside.txt",
        "/pipe",
        "config.json",
        "http://127.0.0.1/config.json",
        "/" + "a" * 5000,
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_nothing_else_is_there(server: PageServer, artifact: Path, path: str, method: str) -> None:
    (artifact / "link.txt").symlink_to(artifact.parent / "outside.txt")
    (artifact / "linked").symlink_to(artifact.parent)
    os.mkfifo(artifact / "pipe")
    status, headers, body = ask(server, path, method=method)
    assert status == 404
    assert body == (b"Not Found\n" if method == "GET" else b"")
    assert "location" not in headers


def test_a_link_inside_the_folder_is_followed(server: PageServer, artifact: Path) -> None:
    (artifact / "onnx" / "again").symlink_to(artifact / "onnx" / "model_q4.onnx_data")
    assert ask(server, "/onnx/again")[2] == WEIGHTS


@pytest.mark.parametrize(
    ("asked", "status", "first", "count"),
    [
        ("bytes=0-0", 206, 0, 1),
        ("bytes=100-199", 206, 100, 100),
        ("bytes=10000-", 206, 10000, 240),
        ("bytes=-40", 206, 10200, 40),
        ("bytes=10230-99999", 206, 10230, 10),
        ("bytes=-99999", 200, 0, 10240),
        ("bytes=0-", 200, 0, 10240),
        ("bytes=5-4", 200, 0, 10240),
        ("bytes=0-1,5-9", 200, 0, 10240),
        ("bytes=-", 200, 0, 10240),
        ("lines=0-1", 200, 0, 10240),
        ("bytes=" + "9" * 40 + "-", 200, 0, 10240),
    ],
)
def test_parts(server: PageServer, asked: str, status: int, first: int, count: int) -> None:
    found, headers, body = ask(server, "/onnx/model_q4.onnx_data", {"Range": asked})
    assert (found, body) == (status, WEIGHTS[first : first + count])
    assert headers.get("content-range") == (f"bytes {first}-{first + count - 1}/10240" if status == 206 else None)


def test_a_part_behind_the_end_and_one_of_another_file(server: PageServer) -> None:
    status, headers, _ = ask(server, "/onnx/model_q4.onnx_data", {"Range": "bytes=10240-"})
    assert (status, headers["content-range"]) == (416, "bytes */10240")
    assert byte_range("bytes=-0", 10) is None and byte_range("bytes=0-", 0) is None and byte_range(None, 0) == (0, 0)
    tag = ask(server, "/onnx/model_q4.onnx_data", method="HEAD")[1]["etag"]
    part = {"Range": "bytes=0-0"}
    assert ask(server, "/onnx/model_q4.onnx_data", {**part, "If-Range": tag})[0] == 206
    assert ask(server, "/onnx/model_q4.onnx_data", {**part, "If-Range": '"old"'})[0] == 200


def test_a_file_that_a_browser_has_is_not_sent_again(server: PageServer, artifact: Path) -> None:
    tag = ask(server, "/config.json")[1]["etag"]
    assert ask(server, "/config.json", {"If-None-Match": tag})[::2] == (304, b"")
    (artifact / "config.json").write_text("{} ")
    assert ask(server, "/config.json", {"If-None-Match": tag})[::2] == (200, b"{} ")


def test_another_sites_name_for_this_machine_reads_nothing(server: PageServer) -> None:
    for name in ("other.host", f"other.host:{server.server_port}", "127.0.0.1.other.host", "", "a b", "[::1"):
        status, _, body = ask(server, "/config.json", {"Host": name})
        assert (status, body) == (421, b"Misdirected Request\n"), name
    for name in ("localhost", f"LOCALHOST:{server.server_port}", "127.0.0.1", "[::1]:80"):
        assert ask(server, "/config.json", {"Host": name})[0] == 200


def test_methods_and_bodies(server: PageServer) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "X\x7f"):
        status, headers, body = raw(server, f"{method} / HTTP/1.1\r\nHost: localhost\r\n\r\n".encode("latin-1"))
        assert status == 501 and b"X\x7f" not in headers + body
    with_body = (
        b"GET /config.json HTTP/1.1\r\nHost: localhost\r\nContent-Length: 30\r\n\r\nGET /.secret HTTP/1.1\r\n\r\n"
    )
    _, headers, body = raw(server, with_body)
    assert b"Connection: close" in headers and body == b"{}"


@pytest.mark.parametrize(
    "line",
    [b"GET /<script> HTTP/9.9", b"<script>", b"GET / HTTP/1.1 <script>", b"GET /" + b"<" * 70_000 + b" HTTP/1.1"],
)
def test_what_is_no_request_is_not_written_back(server: PageServer, line: bytes) -> None:
    status, headers, body = raw(server, line + b"\r\nHost: localhost\r\n\r\n")
    assert 400 <= status < 600 and b"<" not in headers + body


def raw(server: PageServer, sent: bytes) -> tuple[int, bytes, bytes]:
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as connection:
        connection.sendall(sent)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    headers, _, body = answer.partition(b"\r\n\r\n")
    return int(headers.split()[1]), headers, body


def test_a_connection_too_many_ends_at_once(server: PageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_free", threading.BoundedSemaphore(1))
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as silent:
        silent.sendall(b"GET /")
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as second:
            assert second.recv(1) == b""
    while True:  # the first one's thread ends when it is gone
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as third:
            try:
                third.sendall(b"HEAD / HTTP/1.0\r\n\r\n")
                if third.recv(1) == b"H":
                    return
            except ConnectionError:
                continue


def test_a_silent_connection_ends(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_server._Handler, "timeout", 0.05)
    with PageServer(find_site(artifact), port=0) as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.01,))
        thread.start()
        with socket.create_connection(("127.0.0.1", found.server_port), timeout=10) as silent:
            assert silent.recv(1) == b""
        found.shutdown()
        thread.join()


def test_a_browser_that_goes_away_prints_nothing(
    server: PageServer, artifact: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (artifact / "onnx" / "large").write_bytes(bytes(20 << 20))
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as connection:
        connection.sendall(b"GET /onnx/large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connection.recv(1)
    assert ask(server, "/config.json")[0] == 200
    assert capfd.readouterr() == ("", "")


def test_the_page_itself_may_be_named(artifact: Path) -> None:
    assert find_site(artifact / "chat") == find_site(artifact)
    (artifact / "chat").rename(artifact / "my-page")
    assert find_site(artifact / "my-page").page == "/my-page/"


def test_a_folder_without_a_page(artifact: Path, tmp_path: Path) -> None:
    (artifact / "chat" / "index.html").unlink()
    with pytest.raises(ArtifactError, match="has no chat page; write it first: lfm2-export chat-page"):
        find_site(artifact)
    for folder in (tmp_path, artifact / "chat", artifact / "onnx"):
        with pytest.raises(ArtifactError, match="neither an artifact nor its chat page"):
            find_site(folder)


def test_addresses_that_cannot_be_had(artifact: Path, server: PageServer) -> None:
    site = find_site(artifact)
    with pytest.raises(Lfm2ExportError, match=rf"port {server.server_port} is in use; give another one with --port"):
        PageServer(site, port=server.server_port)
    for host in ("no such host", "192.0.2.1", "host.invalid", "\udcff", "a" * 300):
        with pytest.raises(Lfm2ExportError, match="is no address of this machine"):
            PageServer(site, host, port=0)


def test_every_address_of_this_machine(artifact: Path) -> None:
    with PageServer(find_site(artifact), "0.0.0.0", 0) as found:
        assert found.public and found.hosts is None and found.address.startswith("http://127.0.0.1:")
    with PageServer(find_site(artifact), "localhost", 0) as found:
        assert not found.public
