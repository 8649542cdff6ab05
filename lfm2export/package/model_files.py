"""What the packager needs to know about the written models, and about where they came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lfm2export.contract import MODEL_FILES

#: Which file the snippets and genai_config.json name, the first that is there: small and portable before exact, and
#: float16 caches last, because a CPU has no use for them.
PREFERENCE = ("q4", "q8", "fp32", "q4f16", "fp16")


class WrittenFile(Protocol):
    """One file of a model, hashed while it was written. `name` is bare, such as ``model_q4.onnx_data``."""

    @property
    def name(self) -> str: ...
    @property
    def bytes(self) -> int: ...
    @property
    def sha256(self) -> str: ...


class Overflow(Protocol):
    """`count` values of the weight `tensor` do not fit float16; `largest` is the greatest magnitude among them."""

    @property
    def tensor(self) -> str: ...
    @property
    def count(self) -> int: ...
    @property
    def largest(self) -> float: ...


class WrittenModel(Protocol):
    """One model file in onnx/ with its data files, which follow it in `files` (see `writer.WrittenModel`)."""

    @property
    def files(self) -> Sequence[WrittenFile]: ...
    @property
    def overflows(self) -> Sequence[Overflow]: ...


#: The models of one artifact by dtype.
Models = Mapping[str, WrittenModel]


@dataclass(frozen=True)
class Provenance:
    """Where the weights came from and how they were written: all that a second build would need.

    name: of the source, such as ``LFM2-350M``; the artifact is called ``<name>-ONNX``.
    repo_id, revision: of the hub, where the source came from there.
    source_files: sha256 of every weight file by its name.
    recipe: options per dtype, as JSON values (block size, bits, symmetric, ...).
    options: those that hold for every dtype (logits mode, ...).
    int8_caches: dtypes whose keys and values are int8.
    formats: what was chosen for every matrix where a target was asked for (see `sensitivity.target.Selection`).
    """

    name: str
    repo_id: str | None
    revision: str | None
    source_files: Mapping[str, str]
    tensor_count: int
    recipe: Mapping[str, Mapping[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)
    formats: Mapping[str, Any] | None = None
    int8_caches: tuple[str, ...] = ()

    @property
    def artifact_name(self) -> str:
        return f"{self.name}-ONNX"


def chunk_counts(models: Models) -> dict[str, int]:
    """Model file name -> number of its external data chunks, in the order of :data:`contract.MODEL_FILES`."""
    return {name: len(models[dtype].files) - 1 for dtype, name in MODEL_FILES.items() if dtype in models}


def preferred(dtypes: Iterable[str]) -> str:
    """The dtype of :data:`PREFERENCE` that comes first among `dtypes`."""
    there = set(dtypes)
    return next(dtype for dtype in PREFERENCE if dtype in there)
