"""Where a checkpoint comes from: a local folder, the hub by id, or the model that ships with this package.

From the hub come safetensors, JSON, templates, licence, notice and card only: no pickle, no Python file, nothing that
is run. Each is asked for by its own name, which is plain: no name of a stranger's becomes a path that this module did
not look at. Their bytes have no bound here, for weights have none: a full disk is one line, every reader has its limit.
Whatever name a revision has, the files are those of the one commit that it stood for, and that commit is reported.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from lfm2export.errors import HubError, SourceError
from lfm2export.progress import Progress, silent
from lfm2export.untrusted.escape import one_line
from lfm2export.untrusted.paths import is_plain_path, named, shown

Origin = Literal["folder", "hub", "shipped"]

#: The name of the model in :func:`shipped_folder`.
SHIPPED_NAME = "LFM2-tiny"

#: Kinds of file at the top of a repository, and the one folder below it that transformers reads templates from.
SUFFIXES = (".safetensors", ".json", ".jinja")
LEGAL = re.compile(r"(LICENSE|NOTICE)([-_.][A-Za-z0-9_.-]*)?", re.ASCII)
TEMPLATES = "additional_chat_templates"
#: Files that one repository may make us ask for; a checkpoint of 1,000 shards of 5 GB has less.
MAX_FILES = 2000
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

#: What the client raises for an answer that is not the hub's.
NO_ANSWER = (ValueError, KeyError, TypeError, AttributeError)

#: Seconds that the hub has for its first answer.
TIMEOUT = 8.0

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
#: A branch, a tag, a commit, or refs/pr/1: the client makes a path of it.
REVISION = re.compile(r"[A-Za-z0-9_][\w.+-]*(/[A-Za-z0-9_][\w.+-]*)*", re.ASCII)


@dataclass(frozen=True)
class ResolvedSource:
    """A folder to open, and how it was found. `revision` is a commit hash, and like `repo_id` only set for the hub."""

    folder: Path
    name: str
    origin: Origin
    repo_id: str | None = None
    revision: str | None = None


def shipped_folder() -> Path:
    """The folder of the small trained model inside this package."""
    return Path(str(resources.files("lfm2export") / "shipped"))


def resolve_source(
    source: str | None = None, revision: str | None = None, progress: Progress = silent
) -> ResolvedSource:
    """Find, and if need be download, the checkpoint that `source` names.

    None is the shipped model; anything that exists, or is spelled as a path (`./x`, `/x`, `~/x`), is a local folder;
    `owner/name` is a hub id, at `revision` (a branch, tag or commit; the default branch unless told).

    Raises:
        SourceError: no such folder, or neither a folder nor a hub id, or a revision of something not on the hub.
        HubError: the hub cannot be reached, or does not give what was asked for.
    """
    if source is None:
        _no_revision(revision, "the shipped model")
        return ResolvedSource(shipped_folder(), SHIPPED_NAME, "shipped")
    path = local_folder(source)
    if path is not None:
        _no_revision(revision, f"the folder {named(source)}")
        return ResolvedSource(path, path.resolve().name, "folder")
    if not HUB_ID.fullmatch(source):
        raise SourceError(
            f"{shown(source)} is neither a folder nor a hub id; give a folder that exists, or an id of the form "
            "owner/name such as LiquidAI/LFM2-350M"
        )
    folder, commit = _download(source, revision, progress)
    return ResolvedSource(folder, source.split("/")[1], "hub", source, commit)


def cached_source(repo_id: object, commit: object) -> ResolvedSource | None:
    """What an earlier download left of `repo_id` at exactly `commit`, both perhaps a stranger's words; fetches nothing.

    None where they are no hub id and commit hash, or the cache has no whole checkpoint of them.
    """
    if not is_hub_id(repo_id) or not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        return None
    assert isinstance(repo_id, str)
    from huggingface_hub.errors import HFValidationError

    try:
        folder = _cached(repo_id, commit)
    except (HFValidationError, OSError):
        return None
    return None if folder is None else ResolvedSource(folder, repo_id.split("/")[1], "hub", repo_id, commit)


def is_hub_id(value: object) -> bool:
    """Whether `value` is spelled as owner/name."""
    return isinstance(value, str) and HUB_ID.fullmatch(value) is not None


def is_wanted(name: object) -> bool:
    """Whether a file of that name, in a repository, is one that an export reads."""
    if not isinstance(name, str) or not is_plain_path(name):
        return False
    folder, _, file = name.rpartition("/")
    if folder:
        return folder == TEMPLATES and file.endswith(".jinja")
    if LEGAL.fullmatch(file):
        return not file.endswith((".py", *PICKLES))
    return file.endswith(SUFFIXES) or file == "README.md"


def local_folder(source: str) -> Path | None:
    """The folder that `source` names, or None where it is not spelled as a path and nothing of that name is there.

    Raises:
        SourceError: it is spelled as a path, or something of that name is there, but it is no folder.
    """
    expected = "expected the folder of a checkpoint, or a hub id such as owner/name"
    try:
        path = Path(source).expanduser()
        if not source or not (path.exists() or source.startswith((".", "/", "~", "\\")) or path.is_absolute()):
            return None
        if path.is_dir():
            return path
        what = "is a file" if path.exists() else "does not exist"
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, no such user, a zero byte
        what = f"cannot be a folder ({getattr(error, 'strerror', None) or one_line(str(error))})"
    raise SourceError(f"{named(source)} {what}, {expected}")


def _no_revision(revision: str | None, what: str) -> None:
    if revision is not None:
        raise SourceError(
            f"revision {shown(revision)} was given for {what}, but only hub ids have revisions; leave it out"
        )


def _download(repo_id: str, revision: str | None, progress: Progress) -> tuple[Path, str]:
    """The snapshot folder and its commit. Without the hub, a complete copy in the cache will do."""
    import httpx2
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    if revision is not None and not (REVISION.fullmatch(revision) and ".." not in revision and len(revision) < 256):
        raise HubError(f"revision {shown(revision)} is none, expected a branch, tag or commit of {repo_id}")
    try:
        try:
            info = HfApi().model_info(repo_id, revision=revision, timeout=TIMEOUT)
        except (httpx2.TransportError, OfflineModeIsEnabled, HfHubHTTPError) as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                raise
            cached = _cached(repo_id, revision)
            if cached is None:
                raise
            return cached, cached.name
        if not COMMIT.fullmatch(str(info.sha)):
            raise HubError(f"the hub says that {repo_id} is at commit {shown(info.sha)}, expected 40 digits; try again")
        names = _checked_files(repo_id, [sibling.rfilename for sibling in info.siblings or []])
        # by the name, not info.sha: so the cache learns what the name stands for, and finds it without the hub
        bar = _bar(progress)
        folder = Path(snapshot_download(repo_id, revision=revision, tqdm_class=bar, allow_patterns=names))
    except (httpx2.HTTPError, HFValidationError, OSError, *NO_ANSWER) as error:
        raise _hub_error(error, repo_id, revision) from error
    return folder, folder.name


def _cached(repo_id: str, revision: str | None) -> Path | None:
    """The snapshot of an earlier download, if it is whole and has a config and weights."""
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError

    try:
        wanted = [file.path for file in get_cached_repo_tree(repo_id, revision=revision) if is_wanted(file.path)]
    except CachedRepoTreeNotFoundError:  # the client cannot tell then whether the snapshot is whole
        wanted = None
    try:
        folder = Path(snapshot_download(repo_id, revision=revision, local_files_only=True, allow_patterns=wanted))
    except LocalEntryNotFoundError:
        return None
    return folder if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")) else None


def _checked_files(repo_id: str, files: list[str]) -> list[str]:
    """Those of `files` to download. They are plain names, so as the client's patterns they match themselves alone.

    Raises:
        HubError: there are no weights among them, or too many files to be a checkpoint.
    """
    top = [name for name in files if "/" not in name]
    wanted = [name for name in files if is_wanted(name)]
    if len(wanted) > MAX_FILES:
        raise HubError(f"{repo_id} has {len(wanted):,} files of a checkpoint's kinds, expected at most {MAX_FILES:,}")
    if any(name.endswith(".safetensors") for name in wanted):
        return wanted
    pickles = sorted(name for name in top if name.endswith(PICKLES))
    if pickles:
        raise HubError(
            f"{repo_id} has its weights as pickle only ({named(pickles[0])}), expected safetensors; pickles can run "
            "code and are never opened: load the model with transformers, save_pretrained(FOLDER), and give that folder"
        )
    raise HubError(
        f"{repo_id} has no safetensors file of a plain name, expected model weights; check the id, or give a local "
        "folder"
    )


def _bar(progress: Progress) -> type:
    """A progress bar class for the client that draws nothing and tells `progress` the bytes."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            # the bar of bytes written to disk; the others count files, and bytes on the wire
            self.counts = options.get("name") == "huggingface_hub.snapshot_download"
            self.done = 0
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            if self.counts:
                self.done += int(n or 0)
                progress("download", self.done, int(self.total) if self.total else None, "B")

    return Bar


def _hub_error(error: Exception, repo_id: str, revision: str | None) -> HubError:
    """One line for whatever the client raised."""
    import httpx2
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"{constants.ENDPOINT}/{repo_id}"
    if isinstance(error, GatedRepoError):
        return HubError(f"{repo_id} is gated; accept its terms at {page}, then run `hf auth login` or set HF_TOKEN")
    if isinstance(error, RevisionNotFoundError):
        return HubError(
            f"{repo_id} has no revision {shown(revision)}; give a branch, tag or commit listed at {page}/commits"
        )
    if isinstance(error, RepositoryNotFoundError):
        return HubError(
            f"there is no model {repo_id} at {constants.ENDPOINT}, or it is private; check the spelling, and for "
            "a private one run `hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return HubError(
                f"access to {repo_id} was denied ({status}); check your token (`hf auth whoami`) and the terms "
                f"at {page}"
            )
        return HubError(
            f"{constants.ENDPOINT} answered {status} for {repo_id}; try again later, or give a local folder"
        )
    if isinstance(error, HFValidationError):
        return HubError(
            f"{shown(repo_id)} is no valid hub id; give one of the form owner/name, or a folder that exists"
        )
    if isinstance(error, OfflineModeIsEnabled):
        return HubError(
            f"offline mode is on (HF_HUB_OFFLINE) and {repo_id} is not in the cache; unset it, or give a local folder"
        )
    if isinstance(error, httpx2.HTTPError):
        return HubError(
            f"cannot reach {constants.ENDPOINT} for {repo_id} ({type(error).__name__}); check the connection, or "
            "HF_ENDPOINT, or give a local folder"
        )
    if error.__cause__ is not None and isinstance(error.__cause__, Exception):
        return _hub_error(error.__cause__, repo_id, revision)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return HubError(f"no space left in {constants.HF_HUB_CACHE} for {repo_id}; free some, or set HF_HOME elsewhere")
    if isinstance(error, NO_ANSWER):
        return HubError(
            f"{constants.ENDPOINT} answers for {repo_id} with something else than the hub does "
            f"({type(error).__name__}); check HF_ENDPOINT and the proxy, or give a local folder"
        )
    reason = one_line(str(error))
    return HubError(f"cannot download {repo_id}: {shown(reason, 300)}; try again, or give a local folder")
