"""Everything in the artifact but the graphs: config, tokenizer, generation settings, model card, licence, manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lfm2export.generation.settings import read_generation
from lfm2export.package.card import CardFacts, find_license, render_card, source_metadata
from lfm2export.package.config import artifact_config
from lfm2export.package.genai import genai_config
from lfm2export.package.generation import artifact_generation
from lfm2export.package.manifest import library_versions, write_manifest
from lfm2export.package.model_files import Models, Provenance, chunk_counts
from lfm2export.package.tokenizer import portable_template, write_tokenizer
from lfm2export.spec import ModelSpec
from lfm2export.text.templates import read_chat_templates
from lfm2export.text.token_ids import folder_token_ids

#: What an Apache licence asks to be passed on.
NOTICE = "NOTICE"

__all__ = ["Models", "Provenance", "write_package"]


def write_package(
    folder: Path,
    source: Path,
    config: Mapping[str, Any],
    spec: ModelSpec,
    models: Models,
    provenance: Provenance,
) -> None:
    """Complete the artifact in `folder`, whose onnx/ already holds `models`.

    Args:
        models: by dtype, as `writer.write_model` returned them.
        source: the checkpoint's folder: tokenizer, templates, licence and card are read from it.
        config: its config.json.

    Raises:
        SourceError: a file of the source is damaged, or none says which token ends a text.
        OSError: the folder cannot be written (`staging` translates it).
    """
    templates = {name: portable_template(text) for name, text in read_chat_templates(source).items()}
    template = templates.get("default")
    generation = read_generation(source)
    tokens = folder_token_ids(source, config, generation, spec.vocab_size)
    settings = artifact_generation(generation, tokens)
    license_file = find_license(source)

    _write_json(folder / "config.json", artifact_config(config, spec, tokens, chunk_counts(models)))
    _write_json(folder / "generation_config.json", settings)
    write_tokenizer(source, folder)
    _write_json(folder / "genai_config.json", genai_config(spec, tokens, settings, models))
    if license_file is not None:
        shutil.copyfile(license_file, folder / "LICENSE")
    if (source / NOTICE).is_file():
        shutil.copyfile(source / NOTICE, folder / NOTICE)
    facts = CardFacts(
        chat=template is not None,
        tools=any("tools" in text for text in templates.values()),
        license_file=license_file is not None,
        source_metadata=source_metadata(source),
        versions=_versions(),
    )
    (folder / "README.md").write_text(render_card(spec, models, provenance, facts), encoding="utf-8")
    write_manifest(folder, provenance, spec, models)


def _versions() -> dict[str, str]:
    import lfm2export

    return {"lfm2export": lfm2export.__version__, **library_versions()}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
