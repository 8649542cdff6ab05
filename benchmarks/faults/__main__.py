"""`python -m benchmarks.faults`, in the root of the repository: the whole campaign, or stages of it.

    python -m benchmarks.faults                                            all stages, results/faults.json and faults.md
    python -m benchmarks.faults --only readers --inputs 2000 --seed 7      as many inputs, other ones
    python -m benchmarks.faults --only readers --surface template          surfaces whose names hold this word
    python -m benchmarks.faults --case 'build: config.json json.wrap:12'   one input again, by the words of a finding
    python -m benchmarks.faults --table                                    write the table again from what is stored

Exit code 1 where anything was found. Results are stored by --store alone, and replace the last ones of that stage.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a fork would miss its threads
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

from benchmarks.faults import launch, results  # noqa: E402
from benchmarks.faults.bases import make_bases  # noqa: E402
from benchmarks.faults.builds import run_builds  # noqa: E402
from benchmarks.faults.disks import run_closed_disks, run_full_disks  # noqa: E402
from benchmarks.faults.kills import SHORT, run_kills  # noqa: E402
from benchmarks.faults.moving_source import run_moving_sources  # noqa: E402
from benchmarks.faults.readers import Finding, Row, reproduce, run_readers  # noqa: E402
from benchmarks.faults.surfaces import SURFACES  # noqa: E402

#: Inputs of each stage where nobody says otherwise.
COUNTS = {"readers": 20_000, "builds": 200, "kills": 200, "full": 40, "closed": 20, "moving": 45}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=results.STAGES, help="repeatable; default all stages")
    parser.add_argument("--inputs", type=int, help="of each stage; default " + ", ".join(map(str, COUNTS.values())))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--surface", help="readers: only those whose names hold this")
    parser.add_argument("--case", help="one input of the readers, as a finding names it")
    parser.add_argument("--bases", type=Path, help="keep the sound folders here, and take them from here")
    parser.add_argument("--store", action="store_true", help="keep what is found in benchmarks/results")
    parser.add_argument("--table", action="store_true", help="write results/faults.md again from what is stored")
    options = parser.parse_args(arguments)
    if options.table:
        (results.RESULTS / "faults.md").write_text(results.render(results.read()), encoding="utf-8")
        return 0
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        bases = make_bases(options.bases or Path(folder) / "bases")
        if options.case is not None:
            return _again(options.case, bases)
        found = 0
        for stage in options.only or results.STAGES:
            began = time.monotonic()
            count = options.inputs if options.inputs is not None else COUNTS[stage]
            rows, findings = run_stage(stage, count, options.seed, bases, Path(folder) / "scratch", options.surface)
            _summary(stage, rows, findings)
            found += len(findings)
            if options.store:
                results.add(stage, results.made(options.seed, time.monotonic() - began, rows, findings))
    return 1 if found else 0


def run_stage(
    stage: str, count: int, seed: int, bases: Path, scratch: Path, surface: str | None = None
) -> tuple[list[Row], list[Finding]]:
    """One stage of the campaign with `count` inputs."""
    if stage == "readers":
        chosen = [found for found in SURFACES if surface is None or surface in found.name]
        campaign = run_readers(count, seed, bases, surfaces=chosen, tell=_tell)
        return campaign.rows, campaign.findings
    if not launch.is_warm():
        launch.warm(bases / "checkpoint", calibrated=stage in ("kills", "moving") and count > SHORT)
    scratch.mkdir(parents=True, exist_ok=True)
    if stage == "builds":
        return run_builds(count, seed, bases, scratch, _tell)
    run = {"kills": run_kills, "full": run_full_disks, "closed": run_closed_disks, "moving": run_moving_sources}[stage]
    return run(count, seed, (bases / "checkpoint", bases / "other"), scratch, _tell)


def _again(case: str, bases: Path) -> int:
    content, done, outcome = reproduce(case, bases)
    print("\n".join(done), content.shown(2000), outcome, sep="\n")
    return 0 if outcome.good else 1


def _summary(stage: str, rows: list[Row], findings: list[Finding]) -> None:
    everything = results.total(rows)
    _tell(
        f"{stage}: {everything.inputs:,} inputs, {everything.successes:,} good, {everything.refusals:,} refused, "
        f"{everything.findings:,} harmed in {len(findings)} ways; slowest {everything.seconds:.2f} s, largest "
        f"{everything.bytes / 1e6:.0f} MB"
    )


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
