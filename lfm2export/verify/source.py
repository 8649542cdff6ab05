"""The checkpoint that an artifact is compared with: given, named by build.json and here already, or the shipped model.

build.json is a stranger's: what it names is never fetched, and no commit of its choice is. Anybody can put a commit
into a repository, as a pull request. `--reference` is the caller's own word, and is fetched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfm2export.checkpoint import Checkpoint, open_checkpoint
from lfm2export.errors import ArtifactError
from lfm2export.hub import SHIPPED_NAME, ResolvedSource, cached_source, is_hub_id, local_folder, resolve_source
from lfm2export.package.manifest import read_manifest
from lfm2export.progress import Progress, silent
from lfm2export.spec import ModelSpec, parse_spec, read_config
from lfm2export.untrusted.paths import shown


@dataclass(frozen=True)
class Source:
    """origin: "given", "cache" (what build.json names, from the hub's cache) or "shipped".

    matches: whether its weights are those that build.json was made from, by sha256; None where it does not say.
    repo_id, revision: the hub's name of it and its commit; None for a folder.
    """

    checkpoint: Checkpoint
    name: str
    origin: str
    matches: bool | None
    repo_id: str | None
    revision: str | None


def find_source(
    folder: Path,
    reference: Path | str | ResolvedSource | None,
    progress: Progress = silent,
    *,
    just_built: bool = False,
) -> Source:
    """The checkpoint of the artifact in `folder`.

    Args:
        reference: a folder, or a hub id (`owner/name`, or `owner/name@revision`; the default branch unless told), which
            is downloaded if need be; None asks build.json, and downloads nothing.
        just_built: the folder was made from `reference` a moment ago, and its files need not be hashed again.

    Raises:
        ArtifactError: there is nothing to compare with, or the checkpoint has another architecture than the artifact.
        SourceError and its kinds: the checkpoint cannot be used.
    """
    manifest = read_manifest(folder)  # which has checked every word of it
    stated: Mapping[str, Any] | None = None if manifest is None else manifest["source"]
    if isinstance(reference, ResolvedSource):
        found, origin = reference, "given"
    elif reference is not None:
        found, origin = _given(str(reference), progress), "given"
    else:
        found, origin = _named(folder, stated)
    checkpoint = open_checkpoint(found.folder)
    _check_same_architecture(folder, checkpoint.spec)
    files = (stated or {}).get("files")
    matches = just_built or files == checkpoint.hash_files(progress) if files else None
    if matches is False and origin == "shipped":
        raise ArtifactError(
            f"{folder} was made from another {SHIPPED_NAME} than this package ships; build it again, or name the "
            "model with --reference"
        )
    return Source(checkpoint, found.name, origin, matches, found.repo_id, found.revision)


def _given(reference: str, progress: Progress) -> ResolvedSource:
    """The caller's own choice: a folder, whatever is in its name, or a hub id and perhaps a revision behind an @."""
    repo_id, at, revision = reference.partition("@")
    if at and is_hub_id(repo_id) and local_folder(reference) is None:
        return resolve_source(repo_id, revision, progress)
    return resolve_source(reference, None, progress)


def _named(folder: Path, stated: Mapping[str, Any] | None) -> tuple[ResolvedSource, str]:
    """What build.json names, if it is on this machine, and its origin."""
    if stated is None:
        raise ArtifactError(f"{folder} has no build.json to say what it was made from; name the model with --reference")
    repo_id, commit, name = (stated.get(key) for key in ("repo_id", "revision", "name"))
    if repo_id is not None:
        if commit is None:
            raise ArtifactError(
                f"{folder}/build.json names the model {repo_id} without a commit; name the model with --reference"
            )
        found = cached_source(repo_id, commit)
        if found is None:
            raise ArtifactError(
                f"{folder}/build.json says that it was made from {repo_id} at commit {commit}, which is not in the "
                "hub's cache; a folder's own word downloads nothing, and a commit may be anybody's pull request: if "
                f"you trust that one, verify {folder} --reference {repo_id}@{commit}"
            )
        return found, "cache"
    if name == SHIPPED_NAME:
        return resolve_source(), "shipped"
    raise ArtifactError(
        f"{folder} was made from a folder called {shown(name)}, whose place build.json does not say; name it with "
        "--reference"
    )


def _check_same_architecture(folder: Path, spec: ModelSpec) -> None:
    own = parse_spec(read_config(folder))
    for name, value in own.__dict__.items():
        if value != spec.__dict__[name]:
            raise ArtifactError(
                f"{folder}: config.json has {name} {shown(value)}, the reference has {shown(spec.__dict__[name])}; "
                "give the model that this artifact was made from"
            )
