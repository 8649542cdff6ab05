"""`serve` as people run it: until a Ctrl-C, with one line for what it cannot do."""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from command_line import COMMAND, environment, error_line, run
from kept_text import Snapshots
from lfm2export.exit_codes import ExitCode


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artifact with a page, as far as a server is concerned."""
    (tmp_path / "artifact" / "chat").mkdir(parents=True)
    (tmp_path / "artifact" / "config.json").write_text("{}")
    (tmp_path / "artifact" / "chat" / "index.html").write_text("<title>page</title>")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "artifact"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, ExitCode.INTERRUPTED), (signal.SIGTERM, ExitCode.TERMINATED)]
)
def test_it_serves_until_a_signal(folder: Path, number: signal.Signals, code: ExitCode) -> None:
    command = [*COMMAND, "serve", "artifact", "--port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=folder.parent, env=environment(), text=True, **pipes) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        address = line.split()[0]
        assert line == f"{address} serves {folder}; Ctrl-C ends it\n"
        connection = http.client.HTTPConnection(address.split("/")[2], timeout=30)
        connection.request("GET", "/chat/")
        assert connection.getresponse().read() == b"<title>page</title>"
        process.send_signal(number)  # while the connection stays open
        assert process.wait(30) == code
        assert process.stdout.read() == ""
        assert process.stderr.read() == ("Interrupted.\n" if number == signal.SIGINT else "")
        connection.close()


def test_a_port_in_use(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = error_line(run("serve", "artifact", "--port", port))
    assert line == f"Error: port {port} is in use; give another one with --port, or 0 for any that is free"


def test_what_cannot_be_served(snapshots: Snapshots, folder: Path) -> None:
    (folder / "chat" / "index.html").unlink()
    snapshots.check(
        "serve",
        run("serve", "artifact"),
        run("serve", "artifact/chat"),
        run("serve", "nowhere"),
        run("serve", "owner/SOME-ONNX"),
        run("serve", "artifact", "--port", "70000"),
    )
    (folder / "chat" / "index.html").touch()
    line = error_line(run("serve", "artifact", "--host", "no such host"))
    assert line.startswith("Error: no such host is no address of this machine")
