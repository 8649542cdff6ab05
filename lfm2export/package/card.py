"""README.md of the artifact: the model card that the hub shows, with snippets that run as they stand.

`verify` fills in the parity table later, between two comments; see :func:`fill_parity`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from lfm2export.contract import HALF_DTYPES, MODEL_FILES
from lfm2export.errors import ArtifactError
from lfm2export.package.model_files import Models, Provenance, preferred
from lfm2export.spec import ModelSpec

PARITY_BEGIN = "<!-- parity:begin -->"
PARITY_END = "<!-- parity:end -->"

LICENSE_NAMES = ("LICENSE", "LICENSE.txt", "LICENSE.md")

#: Front matter that holds for a conversion as it does for its source.
_INHERITED = ("license", "license_name", "license_link", "language", "tags")
_TAGS = ("transformers.js", "onnx", "onnxruntime", "onnxruntime-genai", "lfm2")

DESCRIPTIONS = {
    "fp32": "float32, the reference",
    "fp16": "float16 weights, activations and caches; for GPUs",
    "q8": "8-bit weights in blocks, float32 activations",
    "q4": "4-bit weights in blocks, float32 activations; the default",
    "q4f16": "4-bit weights in blocks, float16 activations and caches; for GPUs",
}


@dataclass(frozen=True)
class CardFacts:
    """What the card says beyond spec and models. `license_file`: the source has one, and it lies beside the card."""

    chat: bool
    tools: bool
    license_file: bool
    source_metadata: Mapping[str, Any]
    versions: Mapping[str, str]


def source_metadata(folder: Path) -> dict[str, Any]:
    """Front matter of the source's README.md; empty where there is none, or none that can be read."""
    from huggingface_hub.repocard import metadata_load

    path = folder / "README.md"
    if not path.is_file():
        return {}
    try:
        return dict(metadata_load(path) or {})
    except Exception:  # YAML errors of many kinds: the card then states the licence file alone, and says so
        return {}


def find_license(folder: Path) -> Path | None:
    """The source's licence file, if it has one."""
    return next((folder / name for name in LICENSE_NAMES if (folder / name).is_file()), None)


def front_matter(facts: CardFacts, provenance: Provenance) -> dict[str, Any]:
    """The metadata that the hub reads. The licence is as the source states it, `other` where it does not."""
    stated = {name: facts.source_metadata[name] for name in _INHERITED if facts.source_metadata.get(name)}
    stated.setdefault("license", "other")
    if facts.license_file and stated.get("license_link", "LICENSE") in LICENSE_NAMES and stated["license"] == "other":
        stated.setdefault("license_name", "see-license-file")
        stated["license_link"] = "LICENSE"
    tags = stated.pop("tags", [])
    tags = [tags] if isinstance(tags, str) else list(tags)
    base = provenance.repo_id or facts.source_metadata.get("base_model")
    matter: dict[str, Any] = {"library_name": "transformers.js", "pipeline_tag": "text-generation", **stated}
    if base:
        matter["base_model"] = base
        if provenance.repo_id:
            matter["base_model_relation"] = "quantized"
    matter["tags"] = list(dict.fromkeys([*_TAGS, *tags]))
    return matter


def render_card(
    spec: ModelSpec,
    models: Models,
    provenance: Provenance,
    facts: CardFacts,
) -> str:
    """The card of an artifact that holds `models`."""
    import jinja2
    from huggingface_hub.repocard import yaml_dump

    dtype = preferred(models)
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["quoted"] = json.dumps
    environment.filters["megabytes"] = _megabytes
    environment.filters["in_words"] = _in_words
    environment.filters["format_in_words"] = format_in_words
    template = environment.from_string(
        (resources.files("lfm2export") / "package" / "templates" / "README.md.jinja").read_text(encoding="utf-8")
    )
    matter = front_matter(facts, provenance)
    return template.render(
        front_matter=yaml_dump(matter).strip(),
        matter=matter,
        facts=facts,
        spec=spec,
        provenance=provenance,
        model_id=provenance.artifact_name,
        dtype=dtype,
        filename=MODEL_FILES[dtype],
        options=[MODEL_FILES[d] for d in MODEL_FILES if d in models],
        half=dtype in HALF_DTYPES,
        half_files=[MODEL_FILES[d] for d in HALF_DTYPES if d in models],
        plain_head_dim=spec.head_dim * spec.num_attention_heads == spec.hidden_size,
        descriptions=DESCRIPTIONS,
        model_files=MODEL_FILES,
        models={d: models[d] for d in MODEL_FILES if d in models},
        parity_begin=PARITY_BEGIN,
        parity_end=PARITY_END,
    )


def fill_parity(card: str, table: str) -> str:
    """`card` with `table` (Markdown) between the parity markers, in place of what stood there.

    Raises:
        ArtifactError: the card does not have the two markers, once each and in order.
    """
    before, after = _around_parity(card)
    return f"{before}{PARITY_BEGIN}\n{table.strip()}\n{PARITY_END}{after}"


def without_parity(card: str) -> str:
    """`card` as it is hashed: nothing between the parity markers. A card without them is taken as it is."""
    try:
        before, after = _around_parity(card)
    except ArtifactError:
        return card
    return f"{before}{PARITY_BEGIN}{PARITY_END}{after}"


def _around_parity(card: str) -> tuple[str, str]:
    start, end = card.find(PARITY_BEGIN), card.find(PARITY_END)
    if card.count(PARITY_BEGIN) != 1 or card.count(PARITY_END) != 1 or end < start:
        raise ArtifactError(f"README.md does not have {PARITY_BEGIN} and {PARITY_END} once each; restore the lines")
    return card[:start], card[end + len(PARITY_END) :]


def _in_words(options: Mapping[str, Any], separator: str = "; ") -> str:
    """Options as a table cell: `{"a_b": 3, "c": {"d": True}, "e": None}` is "a b 3; c: d"."""
    words: list[str] = []
    for key, value in options.items():
        name = key.replace("_", " ")
        if isinstance(value, Mapping):
            words.append(f"{name}: {_in_words(value, ', ')}")
        elif isinstance(value, bool):
            words.append(name if value else f"not {name}")
        elif value is not None:
            words.append(f"{name} {value}")
    return separator.join(words)


def format_in_words(row: Mapping[str, Any]) -> str:
    """The block format of a row of `provenance.formats`: "4 bits, blocks of 32 with zero points"."""
    zeros = "" if row["symmetric"] else " with zero points"
    return f"{row['bits']} bits, blocks of {row['block_size']}{zeros}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
