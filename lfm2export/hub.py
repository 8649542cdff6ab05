"""Where a checkpoint comes from: a local folder, the hub by id, or the model that ships with this package.

From the hub come safetensors, JSON, templates, licence and card only: no pickle, no Python file, nothing that is run.
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

Origin = Literal["folder", "hub", "shipped"]

#: The name of the model in :func:`shipped_folder`.
SHIPPED_NAME = "LFM2-tiny"

ALLOWED = ["*.safetensors", "*.json", "*.jinja", "LICENSE*", "README.md"]
IGNORED = ["*/*", "*.py"]
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

#: Seconds that the hub has for its first answer.
TIMEOUT = 8.0

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


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
    path = Path(source).expanduser()
    if source and (path.exists() or source.startswith((".", "/", "~", "\\")) or path.is_absolute()):
        if not path.is_dir():
            what = "is a file" if path.exists() else "does not exist"
            raise SourceError(f"{source} {what}, expected the folder of a checkpoint, or a hub id such as owner/name")
        _no_revision(revision, f"the folder {source}")
        return ResolvedSource(path, path.resolve().name, "folder")
    if not HUB_ID.fullmatch(source):
        raise SourceError(
            f"{source!r} is neither a folder nor a hub id; give a folder that exists, or an id of the form owner/name "
            "such as LiquidAI/LFM2-350M"
        )
    folder, commit = _download(source, revision, progress)
    return ResolvedSource(folder, source.split("/")[1], "hub", source, commit)


def _no_revision(revision: str | None, what: str) -> None:
    if revision is not None:
        raise SourceError(f"revision {revision!r} was given for {what}, but only hub ids have revisions; leave it out")


def _download(repo_id: str, revision: str | None, progress: Progress) -> tuple[Path, str]:
    """The snapshot folder and its commit. Without the hub, a complete copy in the cache will do."""
    import httpx2
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    wanted: dict[str, Any] = {"allow_patterns": ALLOWED, "ignore_patterns": IGNORED}
    try:
        try:
            info = HfApi().model_info(repo_id, revision=revision, timeout=TIMEOUT)
        except (httpx2.TransportError, OfflineModeIsEnabled, HfHubHTTPError) as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                raise
            cached = _cached(repo_id, revision, wanted)
            if cached is None:
                raise
            return cached, cached.name
        _check_files(repo_id, [sibling.rfilename for sibling in info.siblings or []])
        # by the name, not info.sha: so the cache learns what the name stands for, and finds it without the hub
        folder = Path(snapshot_download(repo_id, revision=revision, tqdm_class=_bar(progress), **wanted))
    except (httpx2.HTTPError, HFValidationError, OSError) as error:
        raise _hub_error(error, repo_id, revision) from error
    return folder, folder.name


def _cached(repo_id: str, revision: str | None, wanted: dict[str, Any]) -> Path | None:
    """The snapshot of an earlier download, if it has a config and weights."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo_id, revision=revision, local_files_only=True, **wanted))
    except LocalEntryNotFoundError:
        return None
    return folder if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")) else None


def _check_files(repo_id: str, files: list[str]) -> None:
    """Refuse before anything is downloaded."""
    top = [name for name in files if "/" not in name]
    if any(name.endswith(".safetensors") for name in top):
        return
    pickles = sorted(name for name in top if name.endswith(PICKLES))
    if pickles:
        raise HubError(
            f"{repo_id} has its weights as pickle only ({pickles[0]}), expected safetensors; pickles can run code and "
            "are never opened: load the model with transformers and save_pretrained(FOLDER), then give that folder"
        )
    raise HubError(f"{repo_id} has no safetensors file, expected model weights; check the id, or give a local folder")


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
            f"{repo_id} has no revision {revision!r}; give a branch, tag or commit listed at {page}/commits"
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
        return HubError(f"{repo_id!r} is no valid hub id; give one of the form owner/name, or a folder that exists")
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
    return HubError(f"cannot download {repo_id}: {' '.join(str(error).split())}; try again, or give a local folder")
