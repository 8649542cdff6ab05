"""Everything verification finds, as frozen records that become parity.json and come back from it.

A figure that was not measured is None, never 0. Differences are in the tensor's own unit (logits, cache values), KLD
and surprise in nats, times in seconds. Each record says what it was measured on. Figures that are not finite (an
artifact that gives NaN) are infinite here and the string "Infinity" in JSON, where all have 7 significant digits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lfm2export.measures import Mean
from lfm2export.verify.figures import (
    Against,
    CachesMeasure,
    CheckName,
    GreedyMeasure,
    RoundingMeasure,
    RouteMeasure,
    StepsMeasure,
    TextMeasures,
    Tolerances,
    Verdict,
    WeightMeasure,
)

SCHEMA_VERSION = 4


@dataclass(frozen=True)
class Failure:
    """One line, and where it shows first: prompt and step by index (step 0 is the prompt's prefill), tensor, layer."""

    check: CheckName
    message: str
    prompt: int | None = None
    step: int | None = None
    tensor: str | None = None
    layer: int | None = None
    got: float | None = None
    limit: float | None = None


@dataclass(frozen=True)
class Check:
    """summary: one line, what was found, or why nothing was measured. failures: the first one is where to look."""

    name: CheckName
    verdict: Verdict
    summary: str
    failures: tuple[Failure, ...]
    seconds: float


@dataclass(frozen=True)
class FileResult:
    """One model file. bytes: graph and data. bits_per_weight: of the data, per parameter; None where it is inline.

    weights_text: over text by prefill, of the weights alone: the graph without rounding of activations, in float32.
    activations_kld: what that rounding adds to the KLD, as shipped by prefill less weights alone, paired by chunk.
    """

    dtype: str
    file: str
    bytes: int
    bits_per_weight: float | None
    logits_mode: str
    tolerances: Tolerances
    checks: tuple[Check, ...]
    weights: tuple[WeightMeasure, ...] | None
    arithmetic: StepsMeasure | None
    rounding: RoundingMeasure | None
    caches: CachesMeasure | None
    steps: StepsMeasure | None
    norms: StepsMeasure | None
    routes: tuple[RouteMeasure, ...]
    greedy: tuple[GreedyMeasure, ...] | None
    text: tuple[TextMeasures, ...] | None
    weights_text: TextMeasures | None
    activations_kld: Mean | None
    against: tuple[Against, ...] | None
    seconds: float

    @property
    def verdict(self) -> Verdict:
        return combined(check.verdict for check in self.checks)

    @property
    def failures(self) -> tuple[Failure, ...]:
        return tuple(failure for check in self.checks for failure in check.failures)


@dataclass(frozen=True)
class PromptFacts:
    """A prompt and the answer that teacher forcing feeds. text is None for prompts of token numbers alone.

    answer_from: who wrote the answer: "reference" (its greedy continuation), or the dtype of the file that did.
    """

    name: str
    text: str | None
    tokens: tuple[int, ...]
    answer: tuple[int, ...]
    answer_from: str


@dataclass(frozen=True)
class ReferenceFacts:
    """What the files were compared with. mode: "memory" or "stream". files: sha256 by name, where build.json has them.

    origin: how it was found: "given", "cache" (build.json names it, the hub's cache has it), or "shipped".
    matches: whether the folder's files are those that build.json was made from; None without build.json.
    repo_id, revision: owner/name and commit, where it came from the hub or its cache; None for a folder.
    """

    name: str
    origin: str
    mode: str
    matches: bool | None
    repo_id: str | None
    revision: str | None


@dataclass(frozen=True)
class TextFacts:
    """The text that was scored. tokens: of all chunks; scored: the second half of each."""

    name: str
    chunks: int
    chunk_tokens: int
    tokens: int
    scored: int


@dataclass(frozen=True)
class Verification:
    """One run of verify. steps: teacher-forced tokens per prompt. versions: of every library that computes."""

    schema_version: int
    tool_version: str
    versions: Mapping[str, str]
    machine: Mapping[str, str]
    folder: str
    parameters: int
    layer_types: tuple[str, ...]
    quick: bool
    steps: int
    reference: ReferenceFacts
    prompts: tuple[PromptFacts, ...]
    text: TextFacts | None
    files: tuple[FileResult, ...]
    seconds: float

    @property
    def verdict(self) -> Verdict:
        return combined(file.verdict for file in self.files)

    @property
    def passed(self) -> bool:
        return self.verdict is Verdict.PASSED


def combined(verdicts: Iterable[Verdict]) -> Verdict:
    """FAILED if any is, else PASSED if any is, else NOT_MEASURED."""
    found = set(verdicts)
    return next((v for v in (Verdict.FAILED, Verdict.PASSED) if v in found), Verdict.NOT_MEASURED)
