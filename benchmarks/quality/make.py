"""From a row to a file, and from a file to what scores it by each column."""

from __future__ import annotations

import contextlib
import hashlib
import io
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.outliers import always, plant_channels
from benchmarks.peers import genai
from benchmarks.peers.gguf import quantize_gguf, write_gguf
from benchmarks.peers.llama import LlamaScore
from benchmarks.peers.locate import ROOT, PeerError, environment, python_of
from benchmarks.quality.methods import Genai, LlamaCpp, Maker, Onnxruntime, Ours
from benchmarks.quality.results import Column
from lfm2export.artifact import find_model
from lfm2export.checkpoint import open_checkpoint
from lfm2export.errors import Lfm2ExportError
from lfm2export.measures import Array
from lfm2export.package.graph import read_graph
from lfm2export.runtime import OnnxModel
from lfm2export.untrusted.onnx_file import read_model
from lfm2export.verify import text, variants
from lfm2export.verify.expected import ExpectedChunk
from lfm2export.verify.text import Score

#: A float32 table for every position is no weight, and in a small model it would hide the weights.
NO_WEIGHTS = ("cos_cache", "sin_cache")

#: Runtimes get one thread: small matrices only lose by more.
THREADS = 1

Open = Callable[[], AbstractContextManager[Score]]


@dataclass(frozen=True)
class Made:
    """A quantized model. weight_bytes: of its weights as stored. files: all of it. columns: how to score it."""

    weight_bytes: int
    files: Sequence[Path]
    columns: Mapping[Column, Open]

    def digest(self) -> str:
        """SHA-256 of the files' names and bytes."""
        found = hashlib.sha256()
        for path in sorted(self.files):
            found.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
        return found.hexdigest()


def make(maker: Maker, source: Path, folder: Path) -> Made:
    """The file of one row, made in `folder` (empty).

    Raises:
        PeerError: a peer is not installed, or failed.
        Lfm2ExportError: ours failed.
    """
    if isinstance(maker, Ours):
        return make_ours(maker, source, folder)
    if isinstance(maker, Onnxruntime):
        return make_onnxruntime(maker, source, folder)
    if isinstance(maker, Genai):
        return make_genai(maker, source, folder)
    return make_llama(maker, source, folder)


def make_ours(maker: Ours, source: Path, folder: Path) -> Made:
    from lfm2export.cli import main

    out = folder / "artifact"
    said = io.StringIO()
    if maker.outliers is not None:
        source = plant_channels(source, folder / "source", always(maker.outliers))
    line = ["build", str(source), "--dtype", maker.dtype, *maker.arguments, "-o", str(out), "--no-verify", "-q"]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main.main(line, prog_name="lfm2-export")
    except SystemExit as ended:
        if ended.code:
            raise Lfm2ExportError(f"lfm2-export {' '.join(line)} exited with {ended.code}: {said.getvalue()}") from None
    return _artifact(out, find_model(out, maker.dtype), maker.dtype)


def make_onnxruntime(maker: Onnxruntime, source: Path, folder: Path) -> Made:
    import logging

    from onnxruntime.quantization import matmul_nbits_quantizer as theirs

    logging.getLogger().setLevel(logging.WARNING)  # importing it makes every library say everything
    path = _float_body(source, folder)
    model = onnx.load(str(path))
    quantizer = theirs.MatMulNBitsQuantizer(
        model,
        block_size=maker.block_size,
        is_symmetric=maker.symmetric,
        accuracy_level=4,
        algo_config=theirs.KQuantWeightOnlyQuantConfig() if maker.algorithm == "k_quant" else None,
    )
    quantizer.process()
    out = folder / "artifact"
    (out / "onnx").mkdir(parents=True)
    shutil.copy(source / "config.json", out)
    made = out / "onnx" / "model_q4.onnx"
    # Small constants stay in the graph, where copies of it are made by their values.
    onnx.save_model(
        quantizer.model.model, str(made), save_as_external_data=True, location=f"{made.name}_data", size_threshold=1024
    )
    return _artifact(out, made, "q4")


def _float_body(source: Path, folder: Path) -> Path:
    """Our float32 graph with the table of q4: what is left for onnxruntime are the body's MatMuls."""
    from lfm2export import passes, pipeline
    from lfm2export.passes import Pass, block_quantize, naming
    from lfm2export.recipes import Formats, Options, table_format
    from lfm2export.writer import write_model

    checkpoint = open_checkpoint(source)
    model = pipeline.fused_graph(checkpoint.spec, "last").clone()
    formats = Formats(None, table_format("q4", Options()))
    table = block_quantize.table_pass(formats, "portable", half=False)
    steps = (Pass("block_table", table, lambda spec: 2), Pass("naming", naming.fuse, naming.expected))
    passes.run(model, checkpoint.spec, steps)
    path = folder / "float_body.onnx"
    write_model(model, checkpoint, path, threads=THREADS)
    return path


def _artifact(out: Path, path: Path, dtype: str) -> Made:
    """A file of our layout."""
    graph = read_model(path)
    wide = variants.all_positions(graph)
    if wide is None:
        raise Lfm2ExportError(f"{path} gives the last logits alone, by a graph that is not known")
    exact = variants.exact_copy(wide)

    def opened(route: Callable[[OnnxModel], Score], changed: onnx.ModelProto | None) -> Open:
        given = changed.SerializeToString() if changed is not None else None
        return lambda: nullcontext(route(OnnxModel(out, dtype, graph=given, threads=THREADS)))

    columns: dict[Column, Open] = {
        "prefill": opened(text.by_prefill, wide),
        "decode": opened(text.by_decode, None),
        "float": opened(text.by_prefill, exact),
    }
    return Made(weight_bytes(path), list(path.parent.glob(f"{path.name}*")), columns)


def make_genai(maker: Genai, source: Path, folder: Path) -> Made:
    out = folder / "artifact"
    genai.build(source, out, maker.recipe)
    exact = folder / "exact"
    shutil.copytree(out, exact)
    copy = variants.exact_copy(read_model(out / "model.onnx"))
    (exact / "model.onnx").write_bytes(copy.SerializeToString())
    columns: dict[Column, Open] = {
        "prefill": lambda: nullcontext(genai.GenaiScore(out, "prefill", threads=THREADS)),
        "decode": lambda: nullcontext(genai.GenaiScore(out, "decode", threads=THREADS)),
        "float": lambda: nullcontext(genai.GenaiScore(exact, "prefill", threads=THREADS)),
    }
    return Made(weight_bytes(out / "model.onnx"), list(out.glob("model.onnx*")), columns)


def make_llama(maker: LlamaCpp, source: Path, folder: Path) -> Made:
    python_of("llama")
    floats = write_gguf(source, folder / "floats.gguf", "F32")
    path = quantize_gguf(floats, folder / "quantized.gguf", maker.kind)
    weights = folder / "weights.npz"
    command = [str(python_of("llama")), "-m", "benchmarks.quality.gguf_weights_worker", str(source), str(path)]
    done = subprocess.run(
        [*command, str(weights)], capture_output=True, text=True, check=False, cwd=ROOT, env=environment()
    )
    if done.returncode:
        raise PeerError(f"{' '.join(command)} exited with {done.returncode}: {done.stderr[-2000:]}")
    columns: dict[Column, Open] = {
        "prefill": lambda: LlamaScore(path, "prefill", threads=THREADS),
        "decode": lambda: LlamaScore(path, "decode", threads=THREADS),
        "float": lambda: nullcontext(by_pytorch(source, dict(np.load(weights)))),
    }
    return Made(int(done.stdout), [path], columns)


def by_pytorch(source: Path, weights: Mapping[str, Array]) -> Score:
    """transformers in fp32 on `weights` (source name -> values) in place of the checkpoint's, a chunk at once."""
    from lfm2export.reference import Run, load_reference

    def override(name: str, start: int, stop: int) -> Any:
        return weights[name][start:stop] if name in weights else None

    reference = load_reference(source, override=override)

    def score(chunk: ExpectedChunk) -> Any:
        trace = reference.run([Run.prefill(chunk.tokens, caches_from=None)])[0]
        return reference.logits(trace.hidden[chunk.first : -1])

    return score


def weight_bytes(path: Path) -> int:
    """Bytes of the initializers of the graph at `path`; tables of sines and cosines are no weights."""
    return sum(found.bytes for found in read_graph(path).initializers if found.name not in NO_WEIGHTS)
