"""`python -m benchmarks.peers gguf|genai|check`: the peers' files, and the proof that they compute the same model.

python -m benchmarks.peers gguf CHECKPOINT OUT.gguf --type BF16      floats
python -m benchmarks.peers gguf CHECKPOINT OUT.gguf --type Q4_K_M    by llama.cpp's own quantizer
python -m benchmarks.peers genai CHECKPOINT OUT --recipe vendor
python -m benchmarks.peers check [--chunks N]                        the shipped model; exit code 1 when floats differ
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.peers import genai
from benchmarks.peers.gguf import quantize_gguf, write_gguf
from benchmarks.peers.locate import PeerError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True)
    gguf = actions.add_parser("gguf", help="write a GGUF file")
    gguf.add_argument("source", type=Path)
    gguf.add_argument("out", type=Path)
    gguf.add_argument("--type", choices=("F32", "F16", "BF16", "Q4_K_M", "Q4_0"), default="BF16")
    built = actions.add_parser("genai", help="run onnxruntime-genai's builder")
    built.add_argument("source", type=Path)
    built.add_argument("out", type=Path)
    built.add_argument("--recipe", choices=tuple(genai.RECIPES), default="vendor")
    check = actions.add_parser("check", help="the peers' float files beside transformers, on the shipped model")
    check.add_argument("--chunks", type=int, default=4)
    options = parser.parse_args(arguments)
    try:
        if options.action == "gguf":
            return make_gguf(options.source, options.out, options.type)
        if options.action == "genai":
            return make_genai(options.source, options.out, options.recipe)
        from benchmarks.peers.check import check_peers  # torch takes seconds to import

        return check_peers(options.chunks)
    except PeerError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2


def make_gguf(source: Path, out: Path, kind: str) -> int:
    """Write `out`; a quantized file is made from BF16 floats, which lie beside it while it takes."""
    if kind in ("Q4_K_M", "Q4_0"):
        floats = write_gguf(source, out.with_suffix(".bf16.gguf"))
        quantize_gguf(floats, out, kind)  # type: ignore[arg-type]
        floats.unlink()
    else:
        write_gguf(source, out, kind)  # type: ignore[arg-type]
    print(f"{out}: {out.stat().st_size:,} bytes")
    return 0


def make_genai(source: Path, out: Path, recipe: genai.Recipe) -> int:
    used = genai.build(source, out, recipe)
    size = sum(path.stat().st_size for path in out.iterdir() if path.is_file())
    print(
        f"{out}: {size:,} bytes in {used.seconds:.1f} s, {used.cpu_seconds:.1f} s of processor time, "
        f"{used.peak_anonymous_bytes / 1e6:,.0f} MB anonymous, {used.peak_resident_bytes / 1e6:,.0f} MB resident"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
