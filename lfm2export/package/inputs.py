"""What packaging takes from the source, read and checked at once, before hours of work may be spent on a build.

After this no file of the source but its weights is opened again, so nothing that is said here can change meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lfm2export.errors import SourceError
from lfm2export.generation.settings import FILE as GENERATION
from lfm2export.generation.settings import read_generation
from lfm2export.package.config import kept_config
from lfm2export.package.front_matter import LICENSE_NAMES, SourceCard, read_source_card
from lfm2export.package.generation import artifact_generation
from lfm2export.package.generation_keys import kept_generation
from lfm2export.package.plain import json_bytes
from lfm2export.package.tokenizer import (
    portable_template,
    read_tokenizer_files,
    template_files,
    with_templates,
)
from lfm2export.spec import ModelSpec
from lfm2export.text.folder import default_length, read_text_files
from lfm2export.text.templates import TOKENIZER_CONFIG
from lfm2export.text.token_ids import TokenIds
from lfm2export.untrusted.json_reader import MAX_BYTES
from lfm2export.untrusted.paths import find_file
from lfm2export.untrusted.text import MAX_TEXT_BYTES, read_bytes

#: What an Apache licence asks to be passed on.
NOTICE = "NOTICE"


@dataclass(frozen=True)
class PackageInputs:
    """Everything of the source that the artifact will hold beside weights, as it will hold it.

    config: keys of config.json that are taken over. generation: generation_config.json. templates: by name.
    tokenizer_settings: tokenizer_config.json, templates embedded. files: further files, path in the artifact -> bytes.
    card: the source's front matter. default_length: tokens that the source's tokenizer allows, at most the positions.
    dropped: what the source says and the artifact does not, such as "config.json: auto_map".
    """

    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    tokens: TokenIds
    templates: Mapping[str, str]
    tokenizer_settings: Mapping[str, Any]
    files: Mapping[str, bytes]
    card: SourceCard
    default_length: int
    dropped: tuple[str, ...]

    @property
    def has_license(self) -> bool:
        return LICENSE_NAMES[0] in self.files


def read_inputs(folder: Path, config: Mapping[str, Any], spec: ModelSpec) -> PackageInputs:
    """What packaging takes from the checkpoint in `folder`, whose config.json is `config`.

    Raises:
        SourceError, ConfigError, TokenizerError: a file is damaged, leads out of the folder, or states something that
            no reader of an artifact could use; the message names it.
    """
    generation = read_generation(folder)
    text = read_text_files(folder, config, generation, spec.vocab_size)
    templates = {name: portable_template(template) for name, template in text.templates.items()}
    tokenizer = read_tokenizer_files(folder, text, spec.vocab_size)
    card = read_source_card(folder)
    kept, of_config = kept_config(config)
    sampling, of_generation = kept_generation(generation or {}, spec.vocab_size, spec.max_position_embeddings)
    texts = {name: template.encode() for name, template in template_files(templates).items()}
    written = artifact_generation(sampling, text.tokens)
    settings = with_templates(tokenizer.settings, templates)
    for name, value in ((GENERATION, written), (TOKENIZER_CONFIG, settings)):
        size = len(json_bytes(value))
        if size > MAX_BYTES:
            raise SourceError(
                f"{folder}: {name} would have {size:,} bytes in the artifact, templates included, and is read up to "
                f"{MAX_BYTES:,}; shorten it, or restore it from the source"
            )
    return PackageInputs(
        config=kept,
        generation=written,
        tokens=text.tokens,
        templates=templates,
        tokenizer_settings=settings,
        files={**tokenizer.files, **texts, **_legal(folder)},
        card=card,
        default_length=default_length(text.settings, spec),
        dropped=(*of_config, *of_generation, *tokenizer.dropped, *card.dropped),
    )


def _legal(folder: Path) -> dict[str, bytes]:
    """Licence and notice, in whatever encoding they are."""
    found: dict[str, bytes] = {}
    for name, names in ((LICENSE_NAMES[0], LICENSE_NAMES), (NOTICE, (NOTICE,))):
        path = next((path for path in (find_file(folder, one, SourceError) for one in names) if path is not None), None)
        if path is not None:
            found[name] = read_bytes(path, SourceError, MAX_TEXT_BYTES, folder=folder)
    return found
