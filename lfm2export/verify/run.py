"""`verify_artifact`: every check of every file of a folder, beside PyTorch on the checkpoint it was made from."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import lfm2export
from lfm2export.artifact import available_models, find_model
from lfm2export.errors import Lfm2ExportError, PromptError, SourceError, TokenizerError
from lfm2export.generation.defaults import read_defaults
from lfm2export.progress import Progress, silent
from lfm2export.reference import Mode, chosen_mode, load_reference, torch_threads
from lfm2export.reference.available import give_back
from lfm2export.runtime import OnnxModel
from lfm2export.verify.expected import Expected, expect, expect_text, write
from lfm2export.verify.figures import TextMeasures
from lfm2export.verify.file import FileChecks, Plan
from lfm2export.verify.greedy import greedy_answers
from lfm2export.verify.kv_cache import has_int8_caches
from lfm2export.verify.over_text import text_measures
from lfm2export.verify.prompts import Prompt, long_tokens, make_prompts, make_text, open_tokenizer
from lfm2export.verify.results import (
    SCHEMA_VERSION,
    PromptFacts,
    ReferenceFacts,
    TextFacts,
    Verification,
)
from lfm2export.verify.source import Source, find_source
from lfm2export.verify.variants import is_exact, open_graph

if TYPE_CHECKING:
    from lfm2export.hub import ResolvedSource
    from lfm2export.kv_scales import KvScales
    from lfm2export.verify.expected import Reference

#: Tokens of a long prompt.
LONG = 4096

#: Parameters below which more than one thread only costs: at 6 M decode is three times as fast with one.
SMALL = 50_000_000

#: Tokens of a free-running answer.
GREEDY = 32

LIBRARIES = ("numpy", "onnx", "onnxruntime", "tokenizers", "torch", "transformers")


@dataclass(frozen=True)
class Scope:
    """What is measured; see :func:`verify_artifact`.

    Raises:
        Lfm2ExportError: the choices contradict each other.
    """

    prompts: Sequence[str] | None = None
    steps: int = 16
    text: Path | None = None
    long: bool = False
    quick: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise Lfm2ExportError(f"steps is {self.steps}, expected at least 1")
        if self.quick and (self.long or self.text is not None):
            raise Lfm2ExportError("the quick form measures neither a long prompt nor text; leave out quick, or those")


def verify_artifact(
    folder: Path,
    *,
    reference: Path | str | ResolvedSource | None = None,
    dtypes: Sequence[str] | None = None,
    prompts: Sequence[str] | None = None,
    steps: int = 16,
    text: Path | None = None,
    long: bool = False,
    quick: bool = False,
    reference_mode: Mode = "auto",
    against: Path | None = None,
    threads: int | None = None,
    just_built: bool = False,
    name: str | None = None,
    progress: Progress = silent,
) -> Verification:
    """Prove the model files in `folder`, or fail them. A failed check is a result, not an exception.

    Args:
        reference: the checkpoint, a folder or hub id (`owner/name@revision` for another than the default branch); None
            takes what build.json names, if it is here already.
        dtypes: which files; None takes all that are there.
        prompts: texts to start from; None takes the built-in ones.
        steps: tokens fed one by one after each prompt.
        text: a UTF-8 file to score, perhaps .xz; None takes the held-out text of this package.
        long: the long prompt fills the whole context, instead of 4,096 tokens.
        quick: two prompts, no long prompt and no text: seconds, for the end of a build.
        reference_mode: "memory", "stream" (layer by layer, bounded memory), or "auto".
        against: another artifact folder of the same tokenizer, to compare with on the same text.
        threads: of the runtime and of PyTorch; None takes one for a small model, and leaves the choice to them else.
        just_built: `folder` was made from `reference` a moment ago, so the reference's files are not hashed again.
        name: what the report calls the folder; None takes its own name.

    Raises:
        Lfm2ExportError: the choices contradict each other.
        ArtifactError: there is no such file, it does not load, or there is nothing to compare it with.
        SourceError and its kinds: the checkpoint cannot be used.
        PromptError: a prompt or the text cannot be used.
    """
    begin = time.perf_counter()
    scope = Scope(prompts, steps, text, long, quick)
    if quick and against is not None:
        raise Lfm2ExportError("the quick form scores no text to compare artifacts on; leave out quick, or against")
    files = _files(folder, dtypes)
    source = find_source(folder, reference, progress, just_built=just_built)
    if threads is None and source.checkpoint.spec.num_parameters < SMALL:
        threads = 1
    with torch_threads(threads):
        plan = make_plan(folder, files, source, scope, mode=reference_mode, threads=threads, progress=progress)
        others = _text_of(against, files, plan, progress) if against is not None else None
        other = against.resolve().name if against is not None else ""
        results = tuple(FileChecks(plan, dtype, path, progress).run(others, other) for dtype, path in files.items())
    return Verification(
        schema_version=SCHEMA_VERSION,
        tool_version=lfm2export.__version__,
        versions={name: metadata.version(name).split("+")[0] for name in LIBRARIES},
        machine={"processor": platform.machine(), "system": platform.system(), "cores": str(os.cpu_count())},
        folder=name if name is not None else folder.resolve().name,
        parameters=source.checkpoint.spec.num_parameters,
        layer_types=tuple(source.checkpoint.spec.layer_types),
        quick=quick,
        steps=steps,
        reference=ReferenceFacts(
            source.name, source.origin, plan.reference.mode, source.matches, source.repo_id, source.revision
        ),
        prompts=tuple(
            PromptFacts(entry.prompt.name, entry.prompt.text, entry.prompt.tokens, entry.answer, plan.author)
            for entry in plan.expected
        ),
        text=_text_facts(plan),
        files=results,
        seconds=time.perf_counter() - begin,
    )


def make_plan(
    folder: Path,
    files: Mapping[str, Path],
    source: Source,
    scope: Scope,
    *,
    mode: Mode = "auto",
    threads: int | None = None,
    progress: Progress = silent,
) -> Plan:
    """What every file of `folder` is measured on, with all that the reference gives on it.

    Raises:
        PromptError: a prompt or the text cannot be used.
    """
    spec, checkpoint = source.checkpoint.spec, source.checkpoint.folder
    tokenizer = open_tokenizer(folder, checkpoint)
    greedy = scope.steps if scope.quick else max(scope.steps, GREEDY)
    prompts = make_prompts(tokenizer, spec, scope.prompts, room=greedy, quick=scope.quick)
    text = make_text(tokenizer, spec, scope.text) if tokenizer is not None and not scope.quick else None
    length = spec.max_position_embeddings if scope.long else LONG
    long = None if scope.quick else long_tokens(text, spec, length)
    reference: Reference = load_reference(checkpoint, chosen_mode(spec.num_parameters, mode))
    compared = long if any(is_exact(open_graph(path, folder)) for path in files.values()) else None
    expected: Sequence[Expected]
    if reference.mode == "memory":
        expected, author = write(reference, prompts, scope.steps, progress), "reference"
        expected_long = expect(reference, (), (), compared, cached=True, progress=progress)[1] if compared else None
    else:  # a streamed reference would read all its weights for every token: there the first file writes
        given, author = _answers(folder, files, prompts, scope.steps, threads, progress)
        give_back()
        expected, expected_long = expect(reference, prompts, given, compared, cached=True, progress=progress)
    return Plan(
        folder=folder,
        source=source,
        reference=reference,
        tokenizer=tokenizer,
        expected=expected,
        author=author,
        expected_long=expected_long,
        long=long,
        text_name=text.name if text is not None else "",
        text=expect_text(reference, text, progress) if text is not None else None,
        why_no_text="left out of the quick form" if scope.quick else "there is no tokenizer.json to read text with",
        greedy=greedy,
        eos_ids=_eos_ids(folder),
        threads=threads,
        kv_scales=_kv_scales(files, folder, source, threads, progress),
    )


def _kv_scales(
    files: Mapping[str, Path], folder: Path, source: Source, threads: int | None, progress: Progress
) -> KvScales | None:
    """Scales of int8 keys and values, measured again where a file has them and the checkpoint can read the text."""
    if not any(has_int8_caches(open_graph(path, folder)) for path in files.values()):
        return None
    from lfm2export.calibrate.caches import measure_kv_scales

    try:
        return measure_kv_scales(source.checkpoint, threads or os.cpu_count() or 1, progress)
    except (TokenizerError, PromptError):
        return None


def _text_of(
    against: Path, files: Mapping[str, Path], plan: Plan, progress: Progress
) -> dict[str, list[TextMeasures]] | None:
    """Another artifact on the plan's text: the same dtypes, or if it has none of them its own first."""
    if plan.text is None:
        return None
    present = _files(against, None)
    same = {dtype: path for dtype, path in present.items() if dtype in files}
    chosen = same or dict(list(present.items())[:1])
    return {dtype: text_measures(plan.text, against, path, plan.threads, progress) for dtype, path in chosen.items()}


def _text_facts(plan: Plan) -> TextFacts | None:
    if plan.text is None:
        return None
    lengths = [len(chunk.tokens) for chunk in plan.text]
    scored = sum(len(chunk.hidden) for chunk in plan.text)
    return TextFacts(plan.text_name, len(lengths), max(lengths), sum(lengths), scored)


def _files(folder: Path, dtypes: Sequence[str] | None) -> dict[str, Path]:
    if dtypes is None:
        found = available_models(folder) if folder.is_dir() else {}
        return found or {"": find_model(folder)}  # which says what is missing
    return {dtype: find_model(folder, dtype) for dtype in dict.fromkeys(dtypes)}


def _answers(
    folder: Path,
    files: Mapping[str, Path],
    prompts: Sequence[Prompt],
    steps: int,
    threads: int | None,
    progress: Progress,
) -> tuple[list[tuple[int, ...]], str]:
    """What teacher forcing feeds, and whose greedy answers those are: the first file's."""
    dtype, path = next(iter(files.items()))
    model = OnnxModel(folder, dtype, file=path, threads=threads)
    return greedy_answers(model, prompts, steps, (), progress), dtype


def _eos_ids(folder: Path) -> frozenset[int]:
    """Tokens that end an answer; none where the folder does not say."""
    try:
        return read_defaults(folder).eos_ids
    except SourceError:
        return frozenset()
