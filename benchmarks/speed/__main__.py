"""`python -m benchmarks.speed 350M|1.2B`, in the root of the repository.

Makes what is missing in --work (a random checkpoint of the shape, our artifacts, the peers'), measures, stores every
round in results/speed-SIZE.json, and writes results/speed.md from all that is stored. Contexts and contenders may be
measured in runs of their own: a run replaces the stored runs of the same machine that share a context with it and have
no contender that it lacks.
"""

from __future__ import annotations

import argparse
import sys
from importlib import metadata
from pathlib import Path

from benchmarks.peers.locate import ROOT
from benchmarks.speed import store
from benchmarks.speed.contenders import CONTENDERS, Contender, by_name, files
from benchmarks.speed.markdown import render
from benchmarks.speed.rounds import Record, measure_rounds
from lfm2export.bench.bandwidth import read_bandwidth
from lfm2export.bench.machine import machine
from lfm2export.bench.run import CONTEXTS
from lfm2export.consumers import locate
from lfm2export.errors import Lfm2ExportError
from lfm2export.synth import write_synth

WORK = ROOT / "benchmarks" / ".work"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("size", choices=("350M", "700M", "1.2B", "2.6B"))
    parser.add_argument("--work", type=Path, default=WORK, help="folder for checkpoints and artifacts")
    parser.add_argument("--contender", action="append", choices=[c.name for c in CONTENDERS], help="default all")
    parser.add_argument("--context", action="append", type=int, help="default 128, 512 and 4096")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--decoded", type=int, default=64, help="tokens decoded after each prompt")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, help="begin no round that would probably end later")
    parser.add_argument("--further", action="store_true", help="add the rounds to the stored run of the same files")
    parser.add_argument("--make-only", action="store_true", help="make what is missing, measure nothing")
    parser.add_argument("--table", action="store_true", help="write results/speed.md again from what is stored")
    options = parser.parse_args(arguments)
    if options.table:
        write_table()
        return 0
    chosen = [by_name(name) for name in options.contender or [c.name for c in CONTENDERS]]
    try:
        made = {contender.name: (contender, make(contender, options.work, options.size)) for contender in chosen}
        if not options.make_only:
            request = {"threads": options.threads, "decoded": options.decoded}
            request["contexts"] = sorted(options.context or CONTEXTS)
            records = measure_rounds(made, request, options.rounds, on_record=tell, seconds=options.seconds)
            sizes = {name: sum(f.stat().st_size for f in files(*found)) for name, found in made.items()}
            head = store.Head(machine(), options.threads, read_bandwidth(options.threads), versions(), sizes)
            store.add(options.size, head, records, further=options.further)
            write_table()
    except Lfm2ExportError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


def make(contender: Contender, work: Path, size: str) -> Path:
    """The contender's artifact of the random checkpoint of `size`, made if it is not there."""
    checkpoint = work / size / "checkpoint"
    path = work / size / contender.place
    if not path.exists():
        if not checkpoint.exists():
            write_synth(size, checkpoint)
        print(f"making {path}", file=sys.stderr, flush=True)
        contender.make(checkpoint, path)
    return path


def write_table() -> None:
    """results/speed.md, and on stdout."""
    text = render({size: store.read(size) for size in store.sizes()})
    (store.RESULTS / "speed.md").write_text(text, encoding="utf-8")
    print(text)


def versions() -> dict[str, str]:
    """Of what is compared; the peers' as their environments pin them."""
    found = {name: metadata.version(name) for name in ("lfm2export", "onnxruntime")}
    for package in ("@huggingface/transformers", "onnxruntime-node", "onnxruntime-web"):
        version = locate.package_version(package)
        if version is not None:
            found[package] = version
    for peer, packages in (("genai", ("onnxruntime-genai", "onnxruntime")), ("llama", ("llama_cpp_python",))):
        for line in (ROOT / "benchmarks" / "peers" / f"requirements-{peer}.txt").read_text().splitlines():
            name, _, version = line.partition("==")
            if name.replace("-", "_") in {package.replace("-", "_") for package in packages}:
                found[f"{peer}: {name}"] = version
    return found


def tell(record: Record) -> None:
    """A line on stderr for each process."""
    parts = [
        f"{run.context}: {run.context / run.first_token_seconds:.0f} / {run.decoded / run.decode_seconds:.1f}"
        for run in record.runs
    ]
    others = "" if record.others is None else f"  (others {record.others:.0%})"
    print(f"round {record.round + 1} {record.contender:<13} {'  '.join(parts)}{others}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
