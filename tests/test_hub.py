"""Sources: folder, shipped model, hub. The hub is a loopback server that speaks what the real client asks for."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lfm2export.checkpoint import open_checkpoint
from lfm2export.errors import HubError, SourceError
from lfm2export.hub import ResolvedSource, cached_source, is_wanted, resolve_source
from tiny import write_tiny

MAIN, OLD = "a" * 40, "b" * 40
#: What `write_tiny` writes.
WANTED = (
    *("LICENSE", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json"),
)


@dataclass
class Hub:
    """Repositories: id -> commit -> file name -> content; `refs` name commits; `deny` answers with a status instead."""

    repos: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=lambda: {"main": MAIN, "v1": OLD})
    deny: dict[str, tuple[int, str]] = field(default_factory=dict)
    deny_files: dict[str, tuple[int, str]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def downloaded(self) -> list[str]:
        return [path.split("/")[-1] for path in self.requests if path.startswith("GET") and "/resolve/" in path]


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def send(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def refuse(self, status: int, code: str) -> None:
            self.send(status, b"{}", **({"X_Error_Code": code} if code else {}))

        def answer(self) -> None:
            path = self.path.split("?")[0]
            hub.requests.append(f"{self.command} {path}")
            api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
            resolve = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            found = api or resolve
            if found is None:
                return self.refuse(404, "")
            repo = found[1]
            if repo in hub.deny:
                return self.refuse(*hub.deny[repo])
            if repo not in hub.repos:
                return self.refuse(404, "RepoNotFound")
            revision = (api[3] if api else resolve[2]) or "main"  # type: ignore[index]
            commit = hub.refs.get(revision, revision)
            if commit not in hub.repos[repo]:
                return self.refuse(404, "RevisionNotFound")
            files = hub.repos[repo][commit]
            if api and api[2] == "tree":
                return self.send(200, json.dumps([entry(name, files[name]) for name in files]).encode())
            if api:
                siblings = [{"rfilename": name} for name in files]
                body = {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings, "private": False}
                return self.send(200, json.dumps(body).encode())
            if repo in hub.deny_files:
                return self.refuse(*hub.deny_files[repo])
            name = resolve[3]  # type: ignore[index]
            if name not in files:
                return self.refuse(404, "EntryNotFound")
            content = files[name]
            headers = {
                "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X_Repo_Commit": commit,
                "Accept_Ranges": "bytes",
            }
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if not asked:
                return self.send(200, content, **headers)
            first, last = int(asked[1]), int(asked[2] or len(content) - 1)
            where = f"bytes {first}-{last}/{len(content)}"
            return self.send(206, content[first : last + 1], Content_Range=where, **headers)

    return Handler


def entry(name: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """What the repositories hold: a model, an older commit of it, a sharded one."""
    root = tmp_path_factory.mktemp("contents")
    extra = {
        "README.md": b"# a card\n",
        "NOTICE": b"made by somebody\n",
        "additional_chat_templates/tool_use.jinja": b"{{ 1 }}",
        "additional_chat_templates/evil.py": b"raise SystemExit\n",
        "additional_chat_templates/deeper/x.jinja": b"{{ 2 }}",
        "../../outside.json": b"{}",
        "/tmp/absolute.json": b"{}",
        "a b.json": b"{}",
        "C:drive.json": b"{}",
        "*.json": b"{}",
        ".hidden.json": b"{}",
        "NUL.json": b"{}",
        "back\\slash.json": b"{}",
        "LICENSE.py": b"raise SystemExit\n",
        "modeling_evil.py": b"raise SystemExit\n",
        "pytorch_model.bin": b"pickle",
        "training_args.bin": b"pickle",
        "onnx/model.safetensors": b"not here",
        "onnx/config.json": b"{}",
        "image.png": b"png",
    }
    return {
        "main": files_of(write_tiny(root / "main")) | extra,
        "old": files_of(write_tiny(root / "old", seed=1)),
        "sharded": files_of(write_tiny(root / "sharded", shard_bytes=60_000)),
    }


@pytest.fixture
def hub(contents: dict[str, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running hub, with the client pointed at it and at an empty cache."""
    hub = Hub(
        repos={
            "someone/tiny": {MAIN: contents["main"], OLD: contents["old"]},
            "someone/sharded": {MAIN: contents["sharded"]},
        }
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    point_client(monkeypatch, hub.url, tmp_path / "cache")
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


def point_client(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path) -> None:
    """What HF_ENDPOINT and HF_HOME do, for a client that is already imported."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(constants, "HF_XET_CACHE", str(cache / "xet"))
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(cache / "harnesses.json"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    close_session()


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def refusal(error: type[SourceError], call: Callable[[], ResolvedSource], *parts: str) -> None:
    with pytest.raises(SourceError) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is error, message
    assert "\n" not in message
    assert [part for part in parts if part not in message] == [], message


# --- folders and the shipped model ------------------------------------------------------------------------------------


def test_nothing_is_the_shipped_model() -> None:
    source = resolve_source()
    assert source.origin == "shipped"
    assert source.folder.name == "shipped"
    assert source.folder.parent.name == "lfm2export"
    assert source.repo_id is source.revision is None


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    assert resolve_source(str(folder)) == ResolvedSource(folder, "name", "folder")
    monkeypatch.chdir(tmp_path)
    assert resolve_source("owner/name") == ResolvedSource(Path("owner/name"), "name", "folder")
    monkeypatch.chdir(folder)
    assert resolve_source(".").name == "name"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_source("~/owner") == ResolvedSource(tmp_path / "owner", "owner", "folder")


@pytest.mark.parametrize("source", ["./none", "/no/such/folder", "~/no-such-folder", "../none"])
def test_paths_never_go_to_the_hub(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refusal(SourceError, lambda: resolve_source(source), f"{source} does not exist", "owner/name")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    refusal(SourceError, lambda: resolve_source(str(file)), "is a file", "expected the folder of a checkpoint")


@pytest.mark.parametrize(
    "source", ["LFM2-350M", "", "a/b/c", "https://huggingface.co/LiquidAI/LFM2-350M", "owner/na me", "owner/", "-a/b"]
)
def test_neither_folder_nor_hub_id(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refusal(SourceError, lambda: resolve_source(source), repr(source), "neither a folder nor a hub id", "owner/name")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("~nosuchuser/x", "~nosuchuser/x cannot be a folder (Could not determine home directory.)"),
        ("x" * 300, f"{'x' * 76!r}"[:-1] + "... cannot be a folder (File name too long)"),
        ("./a\nb", "'./a\\nb' does not exist"),
        ("./a\0b", "'./a\\x00b' does not exist"),
        ("a\0b", "'a\\x00b' is neither a folder nor a hub id"),
        ("owner/na\u202eme", "is neither a folder nor a hub id"),
    ],
)
def test_odd_names(source: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refusal(SourceError, lambda: resolve_source(source), said, "owner/name")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("model-00001-of-00002.safetensors", True),
        ("model.safetensors.index.json", True),
        ("NOTICE.txt", True),
        ("LICENSE-MODEL", True),
        ("LICENSES", False),
        ("LICENSE.bin", False),
        ("additional_chat_templates/a-b.jinja", True),
        ("additional_chat_templates/../config.json", False),
        ("additional_chat_templates//x.jinja", False),
        ("other/x.jinja", False),
        ("modeling.py", False),
        ("config.json\n", False),
        ("conf?g.json", False),
        ("[a].json", False),
        ("", False),
        (None, False),
    ],
)
def test_which_files_are_asked_for(name: object, wanted: bool) -> None:
    assert is_wanted(name) is wanted


def test_only_hub_ids_have_revisions(tmp_path: Path) -> None:
    refusal(SourceError, lambda: resolve_source(str(tmp_path), "main"), "'main'", "only hub ids have revisions")
    refusal(SourceError, lambda: resolve_source(None, "main"), "the shipped model")


# --- the hub ----------------------------------------------------------------------------------------------------------


def test_download_takes_what_an_export_needs_and_nothing_that_runs(
    hub: Hub, contents: dict[str, dict[str, bytes]]
) -> None:
    told: list[tuple[int, int | None]] = []
    source = resolve_source("someone/tiny", None, lambda stage, done, total, unit: told.append((done, total)))
    assert (source.name, source.origin, source.repo_id, source.revision) == ("tiny", "hub", "someone/tiny", MAIN)
    wanted = {*WANTED, "additional_chat_templates/tool_use.jinja", "NOTICE", "README.md"}
    there = {path.relative_to(source.folder).as_posix() for path in source.folder.rglob("*") if path.is_file()}
    assert there == wanted and {name.split("/")[-1] for name in wanted} == set(hub.downloaded())
    assert {name: (source.folder / name).read_bytes() for name in wanted} == {
        name: contents["main"][name] for name in wanted
    }
    open_checkpoint(source.folder)
    assert max(done for done, _ in told) == sum(len(contents["main"][name]) for name in wanted)


def test_a_second_time_nothing_is_downloaded(hub: Hub) -> None:
    first = resolve_source("someone/tiny")
    hub.requests.clear()
    assert resolve_source("someone/tiny") == first
    assert hub.downloaded() == []


def test_sharded(hub: Hub) -> None:
    checkpoint = open_checkpoint(resolve_source("someone/sharded").folder)
    assert len(checkpoint.files) > 2
    assert len(checkpoint.hash_files()) == len(checkpoint.files)


@pytest.mark.parametrize("revision", ["v1", OLD])
def test_pinned_revision(hub: Hub, contents: dict[str, dict[str, bytes]], revision: str) -> None:
    source = resolve_source("someone/tiny", revision)
    assert source.revision == OLD
    assert (source.folder / "model.safetensors").read_bytes() == contents["old"]["model.safetensors"]


def test_no_such_repository(hub: Hub) -> None:
    refusal(HubError, lambda: resolve_source("someone/nothing"), "no model someone/nothing", "check the spelling")


@pytest.mark.parametrize(
    "revision", ["", "../../x", "a/../b", "/x", "a//b", "-x", "x\n", "x\0", "x" * 300, "a b", "x?y", "x..y", "x/"]
)
def test_revisions_that_are_none(hub: Hub, revision: str) -> None:
    refusal(HubError, lambda: resolve_source("someone/tiny", revision), "is none, expected a branch, tag or commit")
    assert hub.requests == []


def test_revisions_of_several_parts(hub: Hub) -> None:
    hub.refs["refs%2Fpr%2F1"] = OLD
    assert resolve_source("someone/tiny", "refs/pr/1").revision == OLD


def test_a_commit_that_is_none(hub: Hub) -> None:
    hub.refs["main"] = "../../../x"
    hub.repos["someone/tiny"]["../../../x"] = hub.repos["someone/tiny"][MAIN]
    refusal(HubError, lambda: resolve_source("someone/tiny"), "is at commit '../../../x', expected 40 digits")


def test_an_endpoint_that_is_no_hub(hub: Hub) -> None:
    hub.deny["someone/tiny"] = (200, "")
    refusal(HubError, lambda: resolve_source("someone/tiny"), hub.url, "someone/tiny")


def test_too_many_files(hub: Hub) -> None:
    hub.repos["someone/many"] = {MAIN: {f"model-{i}.safetensors": b"" for i in range(2001)}}
    refusal(HubError, lambda: resolve_source("someone/many"), "has 2,001 files", "at most 2,000")
    assert hub.downloaded() == []


def test_what_the_cache_has_at_a_commit(hub: Hub) -> None:
    assert cached_source("someone/tiny", MAIN) is None
    first = resolve_source("someone/tiny")
    hub.requests.clear()
    assert cached_source("someone/tiny", MAIN) == first
    assert cached_source("someone/tiny", OLD) is None
    for repo_id, commit in (
        ("someone/tiny", "main"),
        ("../x", MAIN),
        (None, MAIN),
        ("someone/tiny", None),
        ("a--b/c", MAIN),
    ):
        assert cached_source(repo_id, commit) is None
    assert hub.requests == []
    (first.folder / "tokenizer.json").unlink()
    assert cached_source("someone/tiny", MAIN) is None


def test_no_such_revision(hub: Hub) -> None:
    for revision in ("v9", "c" * 40):
        refusal(
            HubError, lambda revision=revision: resolve_source("someone/tiny", revision), f"no revision '{revision}'"
        )


@pytest.mark.parametrize("status", [401, 403])
def test_gated(hub: Hub, status: int) -> None:
    hub.deny["someone/gated"] = (status, "GatedRepo")
    refusal(HubError, lambda: resolve_source("someone/gated"), "is gated", "accept its terms", "HF_TOKEN")


@pytest.mark.parametrize("status", [401, 403])
def test_gated_files_of_a_listed_repository(hub: Hub, status: int) -> None:
    """As the hub does it: everybody sees the list, members get the files."""
    hub.deny_files["someone/tiny"] = (status, "GatedRepo")
    refusal(HubError, lambda: resolve_source("someone/tiny"), "is gated")


def test_denied(hub: Hub) -> None:
    hub.deny["someone/private"] = (403, "")
    refusal(HubError, lambda: resolve_source("someone/private"), "denied (403)", "token")


def test_hub_out_of_order(hub: Hub) -> None:
    hub.deny["someone/tiny"] = (503, "")
    refusal(HubError, lambda: resolve_source("someone/tiny"), "answered 503", "try again later")


def test_pickle_only_and_empty_repositories_are_refused_before_the_download(hub: Hub) -> None:
    hub.repos["someone/pickle"] = {MAIN: {"config.json": b"{}", "pytorch_model.bin": b"x"}}
    hub.repos["someone/empty"] = {MAIN: {"config.json": b"{}"}}
    refusal(HubError, lambda: resolve_source("someone/pickle"), "pickle only (pytorch_model.bin)", "save_pretrained")
    refusal(HubError, lambda: resolve_source("someone/empty"), "no safetensors file")
    assert hub.downloaded() == []


def test_invalid_id(hub: Hub) -> None:
    refusal(HubError, lambda: resolve_source("some--one/x"), "no valid hub id")


def test_hub_down_is_told_quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
    url = f"http://127.0.0.1:{closed_port}"
    point_client(monkeypatch, url, tmp_path)
    started = time.monotonic()
    for revision in (None, OLD):
        refusal(HubError, lambda revision=revision: resolve_source("someone/tiny", revision), "cannot reach", url)
    assert time.monotonic() - started < 10


def test_hub_down_but_cached(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
    first = resolve_source("someone/tiny")
    point_client(monkeypatch, f"http://127.0.0.1:{closed_port}", tmp_path / "cache")
    assert resolve_source("someone/tiny") == first
    assert resolve_source("someone/tiny", MAIN) == first
    refusal(HubError, lambda: resolve_source("someone/tiny", "v1"), "cannot reach")
    (first.folder / "model.safetensors").unlink()
    refusal(HubError, lambda: resolve_source("someone/tiny"), "cannot reach")


def test_offline_mode(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    first = resolve_source("someone/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    hub.requests.clear()
    assert resolve_source("someone/tiny") == first
    refusal(HubError, lambda: resolve_source("someone/sharded"), "offline mode is on", "HF_HUB_OFFLINE")
    assert hub.requests == []


def test_environment_of_a_fresh_process(hub: Hub, tmp_path: Path) -> None:
    """HF_ENDPOINT and HF_HOME, read by the client itself; nothing is printed on the way."""
    script = "import sys; from lfm2export.hub import resolve_source; s = resolve_source('someone/tiny')\n"
    script += "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    script += "print(s.folder, s.revision)"
    keep = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment = keep | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    ran = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    folder, revision = ran.stdout.split()
    assert revision == MAIN
    assert Path(folder).is_relative_to(tmp_path / "home")
    assert "%" not in ran.stderr, ran.stderr


def test_importing_the_module_does_not_import_the_client() -> None:
    script = "import sys, lfm2export.hub; assert 'huggingface_hub' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
