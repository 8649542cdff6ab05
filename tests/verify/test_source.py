"""What an artifact is compared with: the caller's word, or what build.json names and this machine has. Never a download
that a stranger's folder asks for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lfm2export import hub
from lfm2export.errors import ArtifactError, SourceError
from lfm2export.hub import ResolvedSource
from lfm2export.verify import source as module
from lfm2export.verify.source import find_source

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ID = "someone/tiny"


@pytest.fixture
def artifact(spoilable: Path, tmp_path: Path) -> Callable[..., Path]:
    """The small files of an artifact, with another source in build.json."""

    def make(**stated: Any) -> Path:
        folder = tmp_path / "artifact"
        folder.mkdir()
        shutil.copy(spoilable / "config.json", folder)
        manifest = json.loads((spoilable / "build.json").read_text())
        manifest["source"] |= stated
        (folder / "build.json").write_text(json.dumps(manifest))
        return folder

    return make


@pytest.fixture
def asked(tiny_source: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """What was asked of the hub; it has the tiny checkpoint under any id."""
    calls: list[tuple[str, str | None]] = []

    def download(repo_id: str, revision: str | None, progress: Any) -> tuple[Path, str]:
        calls.append((repo_id, revision))
        return tiny_source, revision or COMMIT

    monkeypatch.setattr(hub, "_download", download)
    return calls


@pytest.fixture
def cached(tiny_source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny checkpoint is in the cache, at one commit."""
    there = {(ID, COMMIT): ResolvedSource(tiny_source, "tiny", "hub", ID, COMMIT)}
    monkeypatch.setattr(module, "cached_source", lambda repo_id, commit: there.get((repo_id, commit)))


def refusal(folder: Path, reference: str | None = None) -> str:
    with pytest.raises(ArtifactError) as caught:
        find_source(folder, reference)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_copy_in_the_cache_is_used_at_that_very_commit(
    artifact: Callable[..., Path], asked: list[tuple[str, str | None]], cached: None
) -> None:
    found = find_source(artifact(repo_id=ID, revision=COMMIT), None)
    assert (found.name, found.origin, found.matches) == ("tiny", "cache", True)
    assert asked == []


def test_what_is_not_here_is_named_and_not_fetched(
    artifact: Callable[..., Path], asked: list[tuple[str, str | None]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = artifact(repo_id=ID, revision=COMMIT)
    assert refusal(folder) == (
        f"{folder}/build.json says that it was made from {ID} at commit {COMMIT}, which is not in the hub's cache; a "
        "folder's own word downloads nothing, and a commit may be anybody's pull request: if you trust that one, "
        f"verify {folder} --reference {ID}@{COMMIT}"
    )
    assert asked == []


def test_the_callers_word_is_the_callers_to_the_last_letter(
    artifact: Callable[..., Path], asked: list[tuple[str, str | None]]
) -> None:
    """A commit of build.json's may be a stranger's pull request; the caller named a repository."""
    folder = artifact(repo_id=ID, revision="f" * 40)
    for reference, revision in ((ID, None), (f"{ID}@refs/pr/1", "refs/pr/1"), (f"{ID}@v1.0", "v1.0")):
        found = find_source(folder, reference)
        assert (found.origin, found.repo_id, found.revision) == ("given", ID, revision or COMMIT)
    assert asked == [(ID, None), (ID, "refs/pr/1"), (ID, "v1.0")]


@pytest.mark.parametrize("reference", [f"{ID}@", f"{ID}@../x", f"{ID}@a@b", f"@{ID}", f"{ID}@\n", "tiny@v1"])
def test_what_is_no_id_and_revision(artifact: Callable[..., Path], reference: str) -> None:
    with pytest.raises(SourceError, match=r"expected a branch, tag or commit|neither a folder nor a hub id") as caught:
        find_source(artifact(), reference)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("revision", ["main", "../../x", 7, COMMIT.upper(), COMMIT + "\n"])
def test_a_revision_that_is_no_commit(
    artifact: Callable[..., Path], asked: list[tuple[str, str | None]], cached: None, revision: object
) -> None:
    folder = artifact(repo_id=ID, revision=revision)
    for reference in (None, ID):
        assert "source.revision is " in refusal(folder, reference)
    assert asked == []


def test_an_id_without_a_commit(artifact: Callable[..., Path], asked: list[tuple[str, str | None]]) -> None:
    folder = artifact(repo_id=ID, revision=None)
    assert (
        refusal(folder) == f"{folder}/build.json names the model {ID} without a commit; name the model with --reference"
    )
    find_source(folder, ID)
    assert asked == [(ID, None)]


@pytest.mark.parametrize("repo_id", ["../x", "/etc", "a/b/c", "a\nb/c", "https://x.y/z", "", 7, ["a/b"], {"a": "b"}])
def test_an_id_that_is_none(
    artifact: Callable[..., Path], asked: list[tuple[str, str | None]], repo_id: object
) -> None:
    assert "source.repo_id is " in refusal(artifact(repo_id=repo_id, revision=COMMIT))
    assert asked == []


def test_a_folder_that_is_called_like_the_id_is_a_folder(
    artifact: Callable[..., Path],
    asked: list[tuple[str, str | None]],
    tiny_source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = artifact(repo_id=ID, revision=COMMIT)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_source, tmp_path / "someone" / "tiny")
    assert find_source(folder, ID).checkpoint.folder == Path(ID)
    shutil.copytree(tiny_source, tmp_path / "someone" / "tiny@v1")
    found = find_source(folder, f"{ID}@v1")
    assert (found.checkpoint.folder, found.repo_id, found.revision) == (Path(f"{ID}@v1"), None, None)
    assert asked == []


def test_names_of_a_strangers_choice(artifact: Callable[..., Path]) -> None:
    message = refusal(artifact(name="/etc/\n# heading"))
    assert "made from a folder called '/etc/\\n# heading', whose place build.json does not say" in message


@pytest.mark.parametrize("source", [None, [], "x"])
def test_a_source_that_is_no_object(artifact: Callable[..., Path], source: object) -> None:
    folder = artifact()
    manifest = json.loads((folder / "build.json").read_text())
    manifest["source"] = source
    (folder / "build.json").write_text(json.dumps(manifest))
    assert "source is " in refusal(folder) and "expected an object" in refusal(folder)


@pytest.mark.parametrize("files", [["a"], "x", {"model.safetensors": 7}, {"../x": "y"}])
def test_files_that_are_no_hashes(artifact: Callable[..., Path], tiny_source: Path, files: object) -> None:
    assert "source.files" in refusal(artifact(files=files), str(tiny_source))


def test_files_of_other_weights_do_not_match(artifact: Callable[..., Path], tiny_source: Path) -> None:
    assert find_source(artifact(files={"model.safetensors": "0" * 64}), tiny_source).matches is False


def test_no_such_reference(artifact: Callable[..., Path]) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        find_source(artifact(), "./nowhere")
