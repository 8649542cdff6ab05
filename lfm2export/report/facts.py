"""What every form of the report says, taken from the records once: summary rows, failures, first differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lfm2export.artifact import available_models
from lfm2export.errors import Lfm2ExportError
from lfm2export.inspection import inspect_model
from lfm2export.report import words
from lfm2export.report.formats import FormatTable
from lfm2export.spec import parse_spec, read_config
from lfm2export.verify.figures import Against, Difference, TextMeasures, Verdict
from lfm2export.verify.results import Failure, FileResult, Verification

#: role -> bytes, by dtype. A dtype whose file is not there is missing.
Sizes = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Fact:
    """One figure in words. key: what it is called where the forms agree on names."""

    key: str
    name: str
    value: str


@dataclass(frozen=True)
class PlacedDifference:
    """A first difference, and the prompt's name and the length of the answer it is in."""

    dtype: str
    prompt: str
    length: int
    found: Difference


def headline(result: Verification) -> str:
    """The verdict in one line."""
    failed = [file.dtype for file in result.files if file.verdict is Verdict.FAILED]
    files = ", ".join(file.dtype for file in result.files) or "no file"
    if failed:
        return f"Parity FAILED for {', '.join(failed)}" + (f" (of {files})" if len(failed) < len(result.files) else "")
    if result.verdict is Verdict.NOT_MEASURED:
        return f"Parity not measured ({files})"
    return f"Parity passed: {files}"


#: How the reference was found, in words.
ORIGINS = {"given": "as given", "cache": "in the hub's cache, as build.json names it", "shipped": "shipped"}


def reference_name(result: Verification) -> str:
    """The checkpoint that the files were compared with: owner, name and commit where it is of the hub."""
    found = result.reference
    if found.repo_id is None:
        return found.name
    return found.repo_id + (f" at commit {found.revision}" if found.revision is not None else "")


def reference_line(result: Verification) -> str:
    """What the files were compared with."""
    known = {True: ", the files that build.json names", False: ", NOT the files that build.json names"}
    matches = known[result.reference.matches] if result.reference.matches is not None else ""
    quick = "quick check, " if result.quick else ""
    prompts = words.plural(len(result.prompts), "prompt")
    steps = words.plural(result.steps, "teacher-forced step")
    origin = ORIGINS.get(result.reference.origin, result.reference.origin)
    return (
        f"Compared with PyTorch on {reference_name(result)} ({origin}){matches}: {quick}{prompts} of {steps}, "
        f"{words.seconds(result.seconds)}."
    )


def text_of(file: FileResult, route: str | None = None) -> TextMeasures | None:
    """What was measured over text by `route`, or by the first there is."""
    return next((found for found in file.text or () if route in (None, found.route)), None)


def greedy_fact(file: FileResult) -> str:
    """How many answers are the reference's own, token for token."""
    if file.greedy is None:
        return words.NOT_MEASURED
    same = sum(1 for found in file.greedy if found.difference is None)
    parted = [found.difference for found in file.greedy if found.difference is not None]
    ties = sum(1 for difference in parted if difference.near_tie)
    notes = [words.plural(ties, "near tie")] if ties else []
    if len(parted) > ties:
        notes.append(words.plural(len(parted) - ties, "real difference"))
    return f"{same} of {len(file.greedy)} equal" + (f" ({', '.join(notes)})" if notes else "")


def summary(file: FileResult) -> list[Fact]:
    """The figures that matter, in the order of the report."""
    text = text_of(file)
    decode, alone = text_of(file, "decode"), file.weights_text
    shipped = file.steps
    # A file that is its own exact copy (fp32) computes on the source's weights: both comparisons are one.
    itself = file.tolerances.own_logits is None
    same = shipped if itself else file.arithmetic
    own = words.share(shipped.own_logits if shipped else None)
    found = [
        Fact("size", "size", words.megabytes(file.bytes)),
        Fact("bits", "bits per weight", words.figure(file.bits_per_weight)),
        Fact("logits", "logits, same weights, largest difference", words.figure(same.max_abs_logits if same else None)),
        Fact("caches", "caches, same weights, largest difference", words.figure(same.max_abs_caches if same else None)),
        Fact("own", "rounding of activations, share of logits", own),
        Fact("step_kld", "KLD per step, as shipped", words.figure(shipped.mean_kld if shipped else None)),
        Fact("step_top", "same top token per step", words.share(shipped.same_top if shipped else None)),
        Fact("text_kld", "KLD over text, nats", words.mean(text.kld if text else None)),
        Fact("weights_kld", "KLD over text, weights alone", words.mean(alone.kld if alone else None)),
        Fact("activations_kld", "KLD over text, added by rounding of activations", words.mean(file.activations_kld)),
        Fact("text_top", "same top token over text", words.share(text.same_top if text else None)),
        Fact("perplexity", "perplexity (reference)", _perplexity(text)),
        Fact(
            "decode_perplexity", "perplexity by cached decode", words.perplexity(decode.perplexity if decode else None)
        ),
        Fact("greedy", "greedy answers", greedy_fact(file)),
    ]
    return [fact for fact in found if not (itself and fact.key in ("own", "weights_kld", "activations_kld"))]


def _perplexity(text: TextMeasures | None) -> str:
    if text is None:
        return words.NOT_MEASURED
    return f"{words.perplexity(text.perplexity)} ({words.perplexity(text.reference_perplexity)})"


def table(result: Verification) -> list[tuple[str, list[str]]]:
    """The summaries of all files side by side: a figure's name, and its value for each file ("–" where it has none)."""
    summaries = [summary(file) for file in result.files]
    columns = [{fact.key: fact.value for fact in found} for found in summaries]
    longest = max(summaries, key=len, default=[])
    return [(fact.name, [column.get(fact.key, "–") for column in columns]) for fact in longest]


def compared(result: Verification) -> list[tuple[str, Against]]:
    """Every paired comparison with another artifact, and the dtype of this one's file."""
    return [(file.dtype, found) for file in result.files for found in file.against or ()]


def formats_line(table: FormatTable) -> str:
    """What the formats were chosen for, and by what."""
    return (
        f"Every matrix of the 4-bit files has a format of its own, chosen for {table.target}: least KLD in those "
        f"bytes, each matrix quantized alone on {table.tokens:,} tokens ({table.text}). Together they are predicted "
        f"to cost {words.figure(table.kld)} nats a token on that text."
    )


def place(failure: Failure, result: Verification) -> str:
    """Where a failure shows first, in words; empty where it is in no one place."""
    parts = []
    if failure.layer is not None:
        parts.append(f"layer {failure.layer}")
    if failure.tensor is not None:
        parts.append(failure.tensor)
    if failure.prompt is not None:
        parts.append(f"prompt {prompt_name(result, failure.prompt)}")
    if failure.step is not None:
        parts.append(f"step {failure.step}")
    if failure.got is not None and failure.limit is not None:
        parts.append(f"{words.figure(failure.got)}, limit {words.figure(failure.limit)}")
    return ", ".join(parts)


def differences(result: Verification) -> list[PlacedDifference]:
    """Every first difference of greedy answers."""
    return [
        PlacedDifference(file.dtype, prompt_name(result, found.prompt), len(found.tokens), found.difference)
        for file in result.files
        for found in file.greedy or ()
        if found.difference is not None
    ]


def prompt_name(result: Verification, index: int) -> str:
    """A prompt by its name; by its number where the record has none of that number."""
    return result.prompts[index].name if 0 <= index < len(result.prompts) else str(index)


def read_sizes(folder: Path) -> Sizes:
    """Bytes by role of every readable model file in `folder`, from the graphs alone."""
    try:
        spec = parse_spec(read_config(folder))
    except Lfm2ExportError:
        return {}
    found: dict[str, Mapping[str, int]] = {}
    for dtype, path in available_models(folder).items():
        try:
            found[dtype] = inspect_model(path, dtype, spec, folder).bytes_by_role
        except Lfm2ExportError:  # a damaged graph has no sizes; that it is damaged is the verifier's finding
            continue
    return found
