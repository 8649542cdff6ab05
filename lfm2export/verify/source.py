"""The checkpoint that an artifact is compared with: given, named by build.json, or the shipped model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfm2export.checkpoint import Checkpoint, open_checkpoint
from lfm2export.errors import ArtifactError
from lfm2export.hub import SHIPPED_NAME, resolve_source
from lfm2export.package.manifest import read_manifest
from lfm2export.progress import Progress, silent
from lfm2export.spec import ModelSpec, parse_spec, read_config


@dataclass(frozen=True)
class Source:
    """matches: whether its weights are those that build.json was made from, by sha256; None where it does not say."""

    checkpoint: Checkpoint
    name: str
    origin: str
    matches: bool | None


def find_source(
    folder: Path, reference: Path | str | None, progress: Progress = silent, *, just_built: bool = False
) -> Source:
    """The checkpoint of the artifact in `folder`.

    Args:
        reference: a folder or hub id; None asks build.json.
        just_built: the folder was made from `reference` a moment ago, and its files need not be hashed again.

    Raises:
        ArtifactError: there is nothing to compare with, or the checkpoint has another architecture than the artifact.
        SourceError and its kinds: the checkpoint cannot be used.
    """
    manifest = read_manifest(folder)
    stated: Mapping[str, Any] = manifest["source"] if manifest is not None else {}
    if reference is not None:
        found, origin = resolve_source(str(reference), None, progress), "given"
    elif not stated:
        raise ArtifactError(f"{folder} has no build.json to say what it was made from; name the model with --reference")
    elif stated.get("repo_id"):
        found, origin = resolve_source(stated["repo_id"], stated["revision"], progress), "build.json"
    elif stated.get("name") == SHIPPED_NAME:
        found, origin = resolve_source(None, None, progress), "shipped"
    else:
        raise ArtifactError(
            f"{folder} was made from a folder called {stated.get('name')}, whose place build.json does not say; "
            "name it with --reference"
        )
    checkpoint = open_checkpoint(found.folder)
    _check_same_architecture(folder, checkpoint.spec)
    files = stated.get("files")
    matches = just_built or dict(files) == checkpoint.hash_files(progress) if files else None
    if matches is False and origin == "shipped":
        raise ArtifactError(
            f"{folder} was made from another {SHIPPED_NAME} than this package ships; build it again, or name the "
            "model with --reference"
        )
    return Source(checkpoint, found.name, origin, matches)


def _check_same_architecture(folder: Path, spec: ModelSpec) -> None:
    own = parse_spec(read_config(folder))
    for name, value in own.__dict__.items():
        if value != spec.__dict__[name]:
            raise ArtifactError(
                f"{folder}: config.json has {name} {value!r}, the reference has {spec.__dict__[name]!r}; "
                "give the model that this artifact was made from"
            )
