"""Everything in the artifact but the graphs: config, tokenizer, generation settings, model card, licence, manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lfm2export.package.card import CardFacts, render_card
from lfm2export.package.config import artifact_config
from lfm2export.package.genai import genai_config
from lfm2export.package.inputs import PackageInputs, read_inputs
from lfm2export.package.manifest import library_versions, write_manifest
from lfm2export.package.model_files import Models, Provenance, chunk_counts
from lfm2export.package.plain import json_bytes
from lfm2export.spec import ModelSpec

__all__ = ["Models", "PackageInputs", "Provenance", "read_inputs", "write_package"]


def write_package(folder: Path, inputs: PackageInputs, spec: ModelSpec, models: Models, provenance: Provenance) -> None:
    """Complete the artifact in `folder`, whose onnx/ already holds `models`. Nothing but `folder` is read.

    Args:
        models: by dtype, as `writer.write_model` returned them.

    Raises:
        OSError: the folder cannot be written (`staging` translates it).
    """
    chunks = chunk_counts(models)
    config = artifact_config(inputs.config, spec, inputs.tokens, chunks, provenance.int8_caches)
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", inputs.generation)
    _write_json(folder / "tokenizer_config.json", inputs.tokenizer_settings)
    search = genai_config(spec, inputs.tokens, inputs.generation, models, inputs.default_length)
    _write_json(folder / "genai_config.json", search)
    for name, content in inputs.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    facts = CardFacts(
        chat="default" in inputs.templates,
        tools=any("tools" in text for text in inputs.templates.values()),
        license_file=inputs.has_license,
        source=inputs.card,
        versions=_versions(),
        generation=inputs.generation,
        default_length=inputs.default_length,
    )
    (folder / "README.md").write_text(render_card(spec, models, provenance, facts), encoding="utf-8", newline="\n")
    write_manifest(folder, provenance, spec, models, inputs.dropped)


def _versions() -> dict[str, str]:
    import lfm2export

    return {"lfm2export": lfm2export.__version__, **library_versions()}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_bytes(json_bytes(value))
