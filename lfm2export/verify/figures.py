"""What each check measures, as frozen records: the figures of one file. Units and conventions: see `verify.results`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from lfm2export.measures import LogitsMeasure, Mean


class Verdict(StrEnum):
    """Of one check, one file, or everything. A check that could not be made is neither good nor bad."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_MEASURED = "not_measured"


class CheckName(StrEnum):
    """What is checked of every file, in this order.

    WEIGHTS: every stored weight against the source's. ARITHMETIC: the graph in float32 on the file's own weights, step
    by step, against PyTorch on the same weights. ROUNDING: where activations are rounded token by token, every product
    against a model of it in numpy. CACHES: where keys and values are int8, every code and what attention makes of them
    against a model in numpy, and the scales measured again. FILE: the file as shipped, step by step, against PyTorch on
    the source. NORMS: as ARITHMETIC, on a residual stream so faint that each norm's eps counts. CHUNKS, PADDING,
    TURNS: the same result by other routes. DRAFTS: tokens fed on trial and taken back. LONG: a long prompt. GREEDY:
    free-running generation. TEXT: KLD and perplexity over text.
    """

    WEIGHTS = "weights"
    ARITHMETIC = "arithmetic"
    ROUNDING = "rounding"
    CACHES = "caches"
    FILE = "file"
    NORMS = "norms"
    CHUNKS = "chunks"
    PADDING = "padding"
    TURNS = "turns"
    DRAFTS = "drafts"
    LONG = "long"
    GREEDY = "greedy"
    TEXT = "text"


class Form(StrEnum):
    """Which form of a file was run: as it is, or its copy in float32 with unquantized activations, on its own weights.

    A float32 file is its own exact copy.
    """

    SHIPPED = "shipped"
    EXACT = "exact"


@dataclass(frozen=True)
class WeightMeasure:
    """One stored initializer against the source tensors it is made of.

    dtype: "float32", "float16", or "4 bit" / "8 bit". block_size, symmetric: None where it is not in blocks.
    error: root mean square of (stored - source) over that of the source. max_abs: the largest difference.
    wrong: values (of a quantized matrix: codes that are not the nearest of their block's grid) that are not what the
    source gives. worse: blocks whose squared error exceeds plain rounding's. moved: codes that are not the nearest in a
    matrix whose codes were moved on purpose, by calibration; `wrong` does not count them, and `worse` counts blocks
    beyond the limits of `quant.moved`. first: where the first wrong one is.
    """

    initializer: str
    parts: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    block_size: int | None
    symmetric: bool | None
    error: float | None
    max_abs: float | None
    wrong: int
    worse: int | None
    moved: int | None
    first: str | None


@dataclass(frozen=True)
class RoundingMeasure:
    """Products whose activations are rounded token by token, against numpy on the same tokens and weights.

    tokens: rows in all, over the products. worst: the largest difference of a result, as a share of its token's largest
    result; where: the product, token and channel of it.
    """

    products: int
    tokens: int
    worst: float
    where: str | None


@dataclass(frozen=True)
class CachesMeasure:
    """int8 keys and values. codes: how many were compared; wrong: those that are not the nearest to what the file
    itself computed, or changed after they were written; first: the first of them.

    worst: the largest difference of an attention's result from numpy's over the codes, as a share of the largest
    result; where: the value and step of it. scales_off: the largest difference of a scale from the one that PyTorch
    gives on the same text, as a share; scale: which. None where there was no text to measure it on.
    share: how far keys and values of the first attention layer, before which nothing is rounded, are at most from those
    of PyTorch on the file's own weights, in float32 but for these codes, as a share of their largest magnitude;
    share_of: which. share_all: the same of every cache, which has what codes of the layers before do besides, and is
    not judged. None where the file's weights are unknown.
    """

    codes: int
    wrong: int
    first: str | None
    worst: float
    where: str | None
    scales_off: float | None = None
    scale: str | None = None
    share: float | None = None
    share_of: str | None = None
    share_all: float | None = None


@dataclass(frozen=True)
class StepPoint:
    """One step of one prompt; tokens: how many the state holds after it. step 0 feeds the whole prompt."""

    prompt: int
    step: int
    tokens: int
    logits: LogitsMeasure


@dataclass(frozen=True)
class CacheSeries:
    """One cache tensor over all steps: the largest difference at each entry of `StepsMeasure.points`, same order.

    scales: the reference's largest magnitude at each; scale: the largest of all.
    """

    tensor: str
    layer: int
    kind: str
    max_abs: tuple[float, ...]
    scales: tuple[float, ...]
    scale: float | None


@dataclass(frozen=True)
class StepsMeasure:
    """Teacher-forced steps. weights: what the reference computed with, "source" or "file" (the file's own weights).

    max_abs_logits, max_abs_caches: the worst of all. mean_kld: over all steps. same_top: share of steps, 0 to 1.
    own_logits: of a file as shipped, how far its logits are at most from those of PyTorch on the file's own weights, as
    a share of their magnitude: what rounding of activations does. own_kld, own_shift: how far PyTorch on the file's own
    weights is itself from PyTorch on the source's, as mean KLD and as the largest difference of logits: what rounding
    of the weights does. None where the file's weights are unknown, or are the source's.
    """

    form: Form
    weights: str
    points: tuple[StepPoint, ...]
    caches: tuple[CacheSeries, ...]
    max_abs_logits: float | None
    max_abs_caches: float | None
    mean_kld: float | None
    same_top: float | None
    own_logits: float | None = None
    own_kld: float | None = None
    own_shift: float | None = None


@dataclass(frozen=True)
class RouteMeasure:
    """The same result by another route. route: such as "3 chunks", "left padding", "4096 tokens at once".

    against: what it was compared with. tokens: how many were fed. max_abs_logits and max_abs_caches over all its steps;
    worst_cache: the tensor of the latter. None where there was nothing to compare. limit_*: what was allowed there.
    first: where something was beyond its limit first.
    """

    check: CheckName
    form: Form
    route: str
    against: str
    tokens: int
    max_abs_logits: float | None
    max_abs_caches: float | None
    worst_cache: str | None
    limit_logits: float
    limit_caches: float
    first: str | None
    verdict: Verdict


@dataclass(frozen=True)
class Difference:
    """Where greedy answers part: at `step` (0: the first token of the answer).

    margin: by how many logits the reference prefers its token to its second. gap: by how many to the artifact's token.
    near_tie: gap is within `limit`, what the file's rounding explains. before, ours, theirs: decoded text around it;
    theirs is the reference's one token where the reference is streamed.
    """

    step: int
    our_token: int
    reference_token: int
    margin: float
    gap: float
    near_tie: bool
    before: str | None
    ours: str | None
    theirs: str | None
    limit: float | None = None


@dataclass(frozen=True)
class GreedyMeasure:
    """One prompt continued by the file alone; `equal` tokens are those of the reference's own greedy answer.

    answer: decoded, None without a tokenizer. difference: None where all tokens are equal.
    """

    prompt: int
    tokens: tuple[int, ...]
    equal: int
    answer: str | None
    difference: Difference | None


@dataclass(frozen=True)
class TextMeasures:
    """Over chunks of text, the second half of each scored. route: "prefill" or "decode".

    kld: mean and standard error over chunks. same_top: share, 0 to 1. chunk_kld, chunk_nll: one per chunk.
    """

    route: str
    chunks: int
    positions: int
    kld: Mean
    same_top: float
    reference_perplexity: float
    perplexity: float
    chunk_kld: tuple[float, ...]
    chunk_nll: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class Against:
    """Another artifact on the same chunks.

    kld, nll: this file's minus the other's, paired by chunk; below 0 this one is better.
    """

    folder: str
    dtype: str
    route: str
    other: TextMeasures
    kld: Mean
    nll: Mean


@dataclass(frozen=True)
class Tolerances:
    """The limits that one dtype was judged by (`verify.tolerances`). None: not judged.

    Differences of logits and caches are limited as shares of the reference's largest magnitude there, where that is
    above 1, for so does rounding grow. exact_*: the exact copy against PyTorch on the same weights, and against itself
    by other routes. own_logits: the file as shipped against PyTorch on the file's own weights. route_*: the file as
    shipped against itself by other routes.

    What weights lose in rounding differs from model to model, and PyTorch on the file's own weights measures it.
    file_kld, text_kld: what mean KLD to the source may be beyond a multiple of that (`KLD_FACTOR`), in nats, over steps
    and over text. near_tie: the greatest gap of a greedy difference that rounding of activations explains, in logits;
    that of the weights is added (`GAP_FACTOR`).
    """

    exact_logits: float
    exact_caches: float
    own_logits: float | None
    route_logits: float
    route_caches: float
    file_kld: float
    text_kld: float
    near_tie: float
