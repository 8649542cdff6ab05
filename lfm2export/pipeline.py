"""The pipeline: checkpoint -> spec -> trace -> passes -> weight plan -> stream to disk -> package, as one function."""

from __future__ import annotations

import gc
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfm2export import contract
from lfm2export.errors import Lfm2ExportError
from lfm2export.graph_contract import check_contract
from lfm2export.progress import Progress, silent
from lfm2export.recipes import RECIPES, Calibration, Chosen, Options, few_operators, formats, kv_cache
from lfm2export.spec import ModelSpec
from lfm2export.untrusted.escape import one_line

if TYPE_CHECKING:
    import onnx_ir as ir

    from lfm2export.calibrate import Calibrated
    from lfm2export.calibrate.text import CalibrationText
    from lfm2export.checkpoint import Checkpoint
    from lfm2export.hub import ResolvedSource
    from lfm2export.kv_scales import KvScales
    from lfm2export.sensitivity.target import Selection
    from lfm2export.weights import WeightSource
    from lfm2export.writer import WrittenModel

MODELS_FOLDER = "onnx"

#: Where calibration and the choice of formats work, inside the staging folder; gone before the artifact is complete.
SCRATCH_FOLDER = ".calibration"
#: Blocks that were quantized during the trace, likewise.
AHEAD_FOLDER = ".ahead"


@dataclass(frozen=True)
class BuildReport:
    """What a build made: `folder` is complete. seconds: wall time of the whole build.

    passed: what the check said, None without one; where it is False, `folder` is beside the output, which is as it was.
    edited: files of the replaced artifact that somebody had changed since they were built. left: what could not
    be removed of it, if anything.
    """

    folder: Path
    source: ResolvedSource
    spec: ModelSpec
    models: Mapping[str, WrittenModel]
    seconds: float
    calibrated: Calibrated | None = None
    selection: Selection | None = None
    passed: bool | None = None
    edited: tuple[str, ...] = ()
    left: Path | None = None


#: Whether a new artifact may take its place. It is given the folder where that lies meanwhile, in which it may write,
#: and the report, whose `folder` is the place.
Check = Callable[[Path, BuildReport], bool]


def build(
    source: str | None = None,
    *,
    revision: str | None = None,
    dtypes: Sequence[str] = ("q4",),
    options: Options | None = None,
    out: Path | None = None,
    force: bool = False,
    threads: int | None = None,
    cache: bool = True,
    check: Check | None = None,
    progress: Progress = silent,
) -> BuildReport:
    """Turn a checkpoint into an artifact folder.

    Args:
        source: a folder, a hub id, or None for the shipped model; `revision` pins a hub id.
        dtypes: rows of `recipes.RECIPES`; they share one trace.
        out: the folder to make, by default ./<name of the source>-ONNX. It appears when it is whole, or not at all.
        force: replace an artifact that is already there, if nothing else is in it.
        threads: workers that evaluate and write weights, by default one a core.
        cache: take the fused graph from the user's cache, and keep it there; the bytes are the same without.
        check: looks at the artifact before it takes its place; one that it refuses is kept as <out>.failed.

    Raises:
        SourceError, ConfigError, TensorError, TokenizerError, HubError: the checkpoint cannot be used.
        OutputError: the output cannot be written, or holds something else than an artifact.
        BusyError: another command works in the output.
        GraphError: the installed libraries trace another graph than the pinned ones.
        PromptError: there is no text to calibrate on.
        Lfm2ExportError: a target that no choice of formats meets.
    """
    from lfm2export.atomic import flush_file
    from lfm2export.checkpoint import open_checkpoint
    from lfm2export.hub import resolve_source
    from lfm2export.package import Provenance, read_inputs, write_package
    from lfm2export.space import check_space, check_target_size
    from lfm2export.staging import check_output, staged_output

    started = time.monotonic()
    options = options if options is not None else Options()
    dtypes = _ordered(dtypes)
    _check_mixed(dtypes, options)
    threads = threads if threads is not None else os.cpu_count() or 1
    if out is not None:  # before a download, when that much is known
        check_output(out, force=force)
    found = resolve_source(source, revision, progress)
    checkpoint = open_checkpoint(found.folder)
    spec = checkpoint.spec
    inputs = read_inputs(found.folder, checkpoint.config, spec)
    out = out if out is not None else Path.cwd() / f"{found.name}-ONNX"
    check_output(out, force=force, source=found.folder)
    check_space(out, spec, dtypes, options)
    check_target_size(spec, dtypes, options)
    read_text = _text(checkpoint, options)  # the last that can be known: from here on the machine works
    with staged_output(out, force=force, source=found.folder) as staged, ThreadPoolExecutor(1) as background:
        folder = staged.folder
        hashes = background.submit(checkpoint.hash_files)  # reads the files while the graph is traced
        progress("trace", 0, None, "graph")
        from lfm2export.ahead import quantized_ahead
        from lfm2export.graph_cache import keep_graph, load_graph
        from lfm2export.writer import write_model  # torch takes seconds to import: not before the input is known good

        settled = dtypes if read_text is None else [dtype for dtype in dtypes if not _is_mixed(dtype)]
        equal = _equalized(checkpoint, dtypes, threads)
        weights = _weights(equal, dtypes if options.calibration is None else settled, options)
        kept = load_graph(spec, options.logits) if cache else None
        idle = threads - 1 if kept is None else 0  # cores that would wait for the trace
        with quantized_ahead(weights, spec, settled, options, folder / AHEAD_FOLDER, idle) as ahead:
            fused = kept if kept is not None else fused_graph(spec, options.logits)
        if cache and kept is None:
            keep_graph(spec, options.logits, fused)
        if options.target is not None:
            from lfm2export.sensitivity.target import check_target

            check_target(spec, options, partial(_largest, fused, spec, dtypes, options))
        text = read_text(progress) if read_text is not None else None
        (folder / MODELS_FOLDER).mkdir()
        scratch = folder / SCRATCH_FOLDER
        selection = _selected(equal, weights, text, fused, dtypes, options, scratch, threads, progress)
        chosen = selection.chosen if selection is not None else None
        calibrated = _calibrated(equal, text, dtypes, options, chosen, scratch, threads, progress)
        scales = _kv_scales(checkpoint, dtypes, options, threads, progress)
        models, flushed = {}, []
        for dtype in dtypes:
            graph = dtype_graph(fused, spec, dtype, options, chosen, scales)
            path = folder / MODELS_FOLDER / contract.MODEL_FILES[dtype]
            held: WeightSource = checkpoint if RECIPES[dtype].body_bits is None else ahead
            if calibrated is not None and _is_mixed(dtype):
                held = calibrated.store
            models[dtype] = write_model(graph, held, path, threads=threads, progress=_staged(progress, dtype))
            flushed += [background.submit(flush_file, path.with_name(file.name)) for file in models[dtype].files]
        for used in (SCRATCH_FOLDER, AHEAD_FOLDER):
            shutil.rmtree(folder / used, ignore_errors=True)
        provenance = Provenance(
            name=one_line(found.name),
            repo_id=found.repo_id,
            revision=found.revision,
            source_files=hashes.result(),
            tensor_count=len(checkpoint.tensors),
            recipe={dtype: _described(dtype, spec, options, equal, calibrated, scales) for dtype in dtypes},
            options={"logits": options.logits},
            formats=selection.described() if selection is not None else None,
            int8_caches=tuple(dtype for dtype in dtypes if kv_cache(dtype, options) == "int8"),
        )
        write_package(folder, inputs, spec, models, provenance)
        report = BuildReport(out, found, spec, models, time.monotonic() - started, calibrated, selection)
        if check is not None:
            report = replace(report, passed=check(folder, report))
            if not report.passed:
                checkpoint.check_unchanged()  # else it was compared with other weights than it was made from
                staged.reject()
        for written in flushed:
            written.result()
    place = out if staged.passed else staged.place
    return replace(report, folder=place, seconds=time.monotonic() - started, edited=staged.edited, left=staged.left)


def _ordered(dtypes: Sequence[str]) -> list[str]:
    """Each dtype once, in the order of the table."""
    unknown = [dtype for dtype in dtypes if dtype not in RECIPES]
    if unknown or not dtypes:
        got = repr(unknown[0]) if unknown else "nothing"
        raise Lfm2ExportError(f"dtype is {got}, expected one or more of {', '.join(RECIPES)}")
    return [dtype for dtype in RECIPES if dtype in dtypes]


def _staged(progress: Progress, dtype: str) -> Progress:
    def listen(stage: str, done: int, total: int | None, unit: str) -> None:
        progress(f"{stage} {dtype}", done, total, unit)

    return listen


def _is_mixed(dtype: str) -> bool:
    """Whether matrices of that file may be calibrated and have formats of their own: those of 4 bits."""
    return RECIPES[dtype].body_bits == 4


def _check_mixed(dtypes: Sequence[str], options: Options) -> None:
    if options.kv_cache == "int8" and all(kv_cache(dtype, options) == "native" for dtype in dtypes):
        raise Lfm2ExportError(
            f"--kv-cache int8 is for q4 and q8, and only {', '.join(dtypes)} is built (fp32 is the reference, float16 "
            "is for GPUs, whose kernels read other caches); add --dtype q4, or leave it out"
        )
    for asked, option in ((options.calibration, "--calibrate"), (options.target, "the target")):
        if asked is not None and not any(_is_mixed(dtype) for dtype in dtypes):
            raise Lfm2ExportError(
                f"{option} is for q4 and q4f16, and only {', '.join(dtypes)} is built; add --dtype q4, or leave it out"
            )


def _equalized(checkpoint: Checkpoint, dtypes: Sequence[str], threads: int) -> Checkpoint:
    """What every file with quantized matrices is made from; the checkpoint itself where there is none."""
    if all(RECIPES[dtype].body_bits is None for dtype in dtypes):
        return checkpoint
    from lfm2export.equalized import equalized

    return equalized(checkpoint, threads)


def _weights(checkpoint: Checkpoint, dtypes: Sequence[str], options: Options) -> WeightSource:
    """What files of `dtypes` are written from: where 4 bits are searched, layer 0 weighed by what the table shows."""
    if options.quantizer != "search" or not any(_is_mixed(dtype) for dtype in dtypes):
        return checkpoint
    from lfm2export.first_layer import Weighted, first_layer_importance

    return Weighted(checkpoint, first_layer_importance(checkpoint, checkpoint.spec))


def _text(checkpoint: Checkpoint, options: Options) -> Callable[[Progress], CalibrationText] | None:
    """What gives the text that matrices are calibrated, and their formats compared, on; None where neither is asked
    for."""
    wanted = options.calibration
    if options.target is not None and wanted is None:
        from lfm2export.sensitivity import text_tokens

        wanted = Calibration(options.target.text, text_tokens(checkpoint.spec.num_parameters))
    if wanted is None:
        return None
    from lfm2export.calibrate.source import open_text

    return open_text(checkpoint, wanted)


def _largest(fused: ir.Model, spec: ModelSpec, dtypes: Sequence[str], options: Options, chosen: Chosen) -> int:
    """Bytes of the largest 4-bit file, data included, whose matrices have the formats `chosen`."""
    from lfm2export.writer import file_bytes

    graphs = {dtype: dtype_graph(fused, spec, dtype, options, chosen) for dtype in dtypes if _is_mixed(dtype)}
    return max(file_bytes(graph, contract.MODEL_FILES[dtype]) for dtype, graph in graphs.items())


def _selected(
    checkpoint: Checkpoint,
    source: WeightSource,
    text: CalibrationText | None,
    fused: ir.Model,
    dtypes: Sequence[str],
    options: Options,
    folder: Path,
    threads: int,
    progress: Progress,
) -> Selection | None:
    """Formats for the target, measured on the model in `folder`, which comes and goes; the 4-bit files share them."""
    if text is None or options.target is None:
        return None
    from lfm2export.sensitivity.target import select_formats

    largest = partial(_largest, fused, checkpoint.spec, dtypes, options)
    folder.mkdir()
    found = select_formats(checkpoint, source, text, options, folder, largest, threads=threads, progress=progress)
    shutil.rmtree(folder)
    return found


def _calibrated(
    checkpoint: Checkpoint,
    text: CalibrationText | None,
    dtypes: Sequence[str],
    options: Options,
    chosen: Chosen | None,
    folder: Path,
    threads: int,
    progress: Progress,
) -> Calibrated | None:
    """What calibration makes of the matrices in `folder`, which it creates; the 4-bit files share it."""
    if text is None or options.calibration is None:
        return None
    from lfm2export.calibrate import calibrate

    folder.mkdir()
    blocks = formats(next(dtype for dtype in dtypes if _is_mixed(dtype)), options, chosen)
    return calibrate(checkpoint, blocks.of, text, folder, threads=threads, progress=progress)


def _kv_scales(
    checkpoint: Checkpoint, dtypes: Sequence[str], options: Options, threads: int, progress: Progress
) -> KvScales | None:
    """Scales of int8 keys and values, where a file of `dtypes` has them; those files share them."""
    if all(kv_cache(dtype, options) == "native" for dtype in dtypes):
        return None
    from lfm2export.calibrate.caches import measure_kv_scales

    return measure_kv_scales(checkpoint, threads, progress)


def _described(
    dtype: str,
    spec: ModelSpec,
    options: Options,
    source: Checkpoint,
    calibrated: Calibrated | None,
    scales: KvScales | None,
) -> dict[str, Any]:
    """The recipe of one file as JSON values; `source`: what its quantized matrices are made from."""
    found = _described_weights(dtype, spec, options, source, calibrated)
    if scales is None or kv_cache(dtype, options) == "native":
        return found
    return found | {"keys and values": scales.described()}


def _described_weights(
    dtype: str, spec: ModelSpec, options: Options, source: Checkpoint, calibrated: Calibrated | None
) -> dict[str, Any]:
    from lfm2export.equalized import Equalized
    from lfm2export.kernels import webgpu_nodes

    stored = formats(dtype, options)
    channels = None
    if RECIPES[dtype].body_bits is not None and isinstance(source, Equalized) and source.scaled:
        channels = source.described()
    if stored.channels is not None:
        weights = {"bits": 8, "scale": "one an output channel"}
        return {
            "activations": "8 bits, one scale a token",
            "body": weights,
            "table": weights,
            "channels": channels,
            "calibration": None,
        }
    body, gate_up, table = stored.body, stored.gate_up, stored.table
    by_matrix = options.target is not None and _is_mixed(dtype)
    return {
        "activations": "float16" if RECIPES[dtype].half else "float32",
        "body": "by matrix" if by_matrix else asdict(body) if body is not None else None,
        "gate_up": asdict(gate_up) if gate_up is not None and gate_up != body and not by_matrix else None,
        "table": "by matrix" if by_matrix else asdict(table) if table is not None else None,
        "lookup": options.lookup if table is not None else None,
        "accuracy_level": options.accuracy_level if body is not None or table is not None else None,
        "operators": "few" if few_operators(dtype, options) else None,
        "webgpu_nodes": webgpu_nodes(spec, dtype, options),
        "channels": channels,
        "calibration": calibrated.described() if calibrated is not None and _is_mixed(dtype) else None,
    }


def fused_graph(spec: ModelSpec, logits: contract.LogitsMode) -> ir.Model:
    """The float32 graph of `spec`, traced and fused; every dtype starts from it.

    Raises:
        GraphError: the trace, or a pass, is not what the spec demands.
    """
    with _uncollected():
        from lfm2export import passes
        from lfm2export.passes import cleanup
        from lfm2export.stack import stack, template_spec
        from lfm2export.trace import trace

        model = trace(template_spec(spec), logits)
        cleanup.fold(model)
        stack(model, spec)
        cleanup.merge(model)
        passes.run(model, spec, passes.fusions(logits))
    return model


@contextmanager
def _uncollected() -> Iterator[None]:
    """Python's cycle collector off: importing torch and tracing make millions of objects that stay, and going through
    them again and again takes a tenth of that time. It costs 17 MB."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def dtype_graph(
    fused: ir.Model,
    spec: ModelSpec,
    dtype: str,
    options: Options,
    chosen: Chosen | None = None,
    scales: KvScales | None = None,
) -> ir.Model:
    """The graph of one file: a copy of the fused graph after the precision passes of `dtype`, held to the contract.

    chosen: formats of single matrices, for files with a 4-bit body. scales: of int8 keys and values; None where only
    the size of the graph matters.
    """
    from lfm2export import passes
    from lfm2export.passes.last_token import give_default
    from lfm2export.passes.precision import precision_passes

    model = fused.clone()
    passes.run(model, spec, precision_passes(dtype, spec, options, chosen, scales))
    give_default(model)
    check_contract(model, spec, dtype, options.logits, kv_cache(dtype, options))
    return model
