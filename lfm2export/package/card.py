"""README.md of the artifact: the model card that the hub shows, with snippets that run as they stand.

`verify` fills in the parity table later, between two comments; see :func:`fill_parity`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from lfm2export.contract import FIRST_INT8_RELEASE, HALF_DTYPES, MODEL_FILES
from lfm2export.errors import ArtifactError
from lfm2export.package.config import device_dtypes
from lfm2export.package.front_matter import SourceCard, dump, front_matter
from lfm2export.package.model_files import Models, Provenance, preferred
from lfm2export.spec import ModelSpec
from lfm2export.untrusted import escape

PARITY_BEGIN = "<!-- parity:begin -->"
PARITY_END = "<!-- parity:end -->"

DESCRIPTIONS = {
    "fp32": "float32, the reference",
    "fp16": "float16 weights, activations and caches; for GPUs",
    "q8": "8-bit weights, float32 activations that products round to 8 bits; for browsers without a GPU",
    "q4": "4-bit weights in blocks, float32 activations; the default",
    "q4f16": "4-bit weights in blocks, float16 activations and caches; for GPUs",
}

#: q8 where its products take float activations.
BLOCKS_OF_8_BITS = "8-bit weights in blocks, float32 activations"


@dataclass(frozen=True)
class CardFacts:
    """What the card says beyond spec and models.

    license_file: the source has one, and it lies beside the card. generation: what generation_config.json says.
    default_length: tokens of a text by the tokenizer's settings, or the position limit.
    """

    chat: bool
    tools: bool
    license_file: bool
    source: SourceCard
    versions: Mapping[str, str]
    generation: Mapping[str, Any] = field(default_factory=dict)
    default_length: int | None = None


#: Sampling values that change nothing, and the runtimes that do not know them (onnxruntime-genai 0.18,
#: Transformers.js 4.3.2).
_UNKNOWN: tuple[tuple[str, float, str], ...] = (
    ("min_p", 0, "onnxruntime-genai and Transformers.js do"),
    ("top_p", 1, "Transformers.js does"),
)


def unexpressed(generation: Mapping[str, Any]) -> str | None:
    """One sentence about values of `generation` that change what is drawn, and that some runtime does not know."""
    if generation.get("do_sample") is not True:
        return None
    found = [
        f"`{name}` {generation[name]:g}, which {runtimes} not know"
        for name, neutral, runtimes in _UNKNOWN
        if generation.get(name) not in (None, neutral)
    ]
    return f"`generation_config.json` asks for {', and for '.join(found)}: they draw without." if found else None


def render_card(
    spec: ModelSpec,
    models: Models,
    provenance: Provenance,
    facts: CardFacts,
) -> str:
    """The card of an artifact that holds `models`."""
    import jinja2

    dtype = preferred(models)
    rounding = "q8" in models and provenance.recipe.get("q8", {}).get("activations") not in (None, "float32")
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["quoted"] = escape.quoted
    environment.filters["markdown"] = escape.markdown
    environment.filters["code"] = escape.markdown_code
    environment.filters["licenses"] = _licenses
    environment.filters["megabytes"] = _megabytes
    environment.filters["in_words"] = _in_words
    environment.filters["format_in_words"] = format_in_words
    template = environment.from_string(
        (resources.files("lfm2export") / "package" / "templates" / "README.md.jinja").read_text(encoding="utf-8")
    )
    matter = front_matter(facts.source, facts.license_file, provenance.repo_id)
    return template.render(
        front_matter=dump(matter),
        facts=facts,
        spec=spec,
        provenance=provenance,
        model_id=provenance.artifact_name,
        length=facts.default_length if facts.default_length is not None else spec.max_position_embeddings,
        unexpressed=unexpressed(facts.generation),
        dtype=dtype,
        filename=MODEL_FILES[dtype],
        options=[MODEL_FILES[d] for d in MODEL_FILES if d in models],
        half=dtype in HALF_DTYPES,
        int8_caches=provenance.int8_caches,
        int8_files=[MODEL_FILES[d] for d in provenance.int8_caches],
        first_int8_release=".".join(map(str, FIRST_INT8_RELEASE)),
        half_files=[MODEL_FILES[d] for d in HALF_DTYPES if d in models],
        plain_head_dim=spec.head_dim * spec.num_attention_heads == spec.hidden_size,
        descriptions=DESCRIPTIONS | ({} if rounding else {"q8": BLOCKS_OF_8_BITS}),
        by_device=device_dtypes(models, provenance.int8_caches),
        rounding=rounding,
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


def _licenses(stated: str | tuple[str, ...]) -> str:
    return " and ".join(escape.markdown_code(name) for name in ((stated,) if isinstance(stated, str) else stated))
