"""The peers' files of the shipped model beside transformers in float32: before a quantized file is compared, the same
weights in floats must give the same logits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from benchmarks.peers import genai
from benchmarks.peers.gguf import quantize_gguf, write_gguf
from benchmarks.peers.llama import CacheType, LlamaScore, Route
from lfm2export.checkpoint import open_checkpoint
from lfm2export.hub import shipped_folder
from lfm2export.reference import load_reference, torch_threads
from lfm2export.text.tokenizer import ChatTokenizer
from lfm2export.verify.expected import expect_text
from lfm2export.verify.prompts import make_text
from lfm2export.verify.text import Score, measure_text

#: KLD in nats of a file in floats. Measured 1.4e-12 for llama.cpp and 9e-13 for genai: another order of summation.
FLOAT_TOLERANCE = 1e-10

ROUTES: tuple[Route, ...] = ("prefill", "decode")

#: Opens a file for one route.
Open = Callable[[Route], AbstractContextManager[Score]]


def check_peers(chunks: int) -> int:
    """Print KLD and same-top of every file; 1 when a file in floats is not the model."""
    source = shipped_folder()
    spec = open_checkpoint(source).spec
    text = make_text(ChatTokenizer(source), spec, None)
    text = replace(text, chunks=text.chunks[:chunks])
    failed = 0
    with tempfile.TemporaryDirectory() as scratch, torch_threads(1):
        expected = expect_text(load_reference(source), text)
        for name, size, floats, opened in files(source, Path(scratch)):
            for route in ROUTES:
                with opened(route) as score:
                    found = measure_text(score, expected, route)
                assert found.kld.mean is not None
                wrong = floats and found.kld.mean > FLOAT_TOLERANCE
                failed += wrong
                print(
                    f"{name:24} {size / 1e6:7.2f} MB  {route:8} KLD {found.kld.mean:.3g} ± "
                    f"{found.kld.standard_error or 0:.1g}  same top {found.same_top:.2%}{'  WRONG' if wrong else ''}",
                    flush=True,
                )
    return 1 if failed else 0


def files(source: Path, scratch: Path) -> Iterator[tuple[str, int, bool, Open]]:
    """(name, bytes, in floats?, opener by route) of every peer's file, made one after the other."""
    floats = write_gguf(source, scratch / "f32.gguf", "F32")
    yield "llama.cpp F32", floats.stat().st_size, True, _llama(floats, "f32")
    half = write_gguf(source, scratch / "f16.gguf", "F16")
    yield "llama.cpp F16", half.stat().st_size, False, _llama(half, "f16")
    for kind in ("Q4_K_M", "Q4_0"):
        made = quantize_gguf(floats, scratch / f"{kind}.gguf", kind)
        yield f"llama.cpp {kind}", made.stat().st_size, False, _llama(made, "f16")
    for recipe in genai.RECIPES:
        genai.build(source, scratch / recipe, recipe)
        size = sum(path.stat().st_size for path in (scratch / recipe).glob("model.onnx*"))
        yield f"genai {recipe}", size, recipe == "fp32", _genai(scratch / recipe)


def _llama(path: Path, cache: CacheType) -> Open:
    return lambda route: LlamaScore(path, route, threads=1, cache=cache)


def _genai(folder: Path) -> Open:
    return lambda route: nullcontext(genai.GenaiScore(folder, route, threads=1))
