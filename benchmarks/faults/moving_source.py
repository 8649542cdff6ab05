"""A checkpoint that changes while it is read: the artifact is that of one version of it, or there is none."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.faults import launch
from benchmarks.faults.kills import SHORT, arguments, prepare
from benchmarks.faults.readers import Finding, Row
from benchmarks.faults.workplace import NEITHER, Workplace, end_fault, fingerprint

#: What happens to the source: name -> does it, given the folder and the other version of it.
Change = Callable[[Path, Path, random.Random], None]


def replace_weights(folder: Path, other: Path, dice: random.Random) -> None:
    """Another training step is saved over it, by a rename as save_pretrained does not: the best case."""
    shutil.copyfile(other / "model.safetensors", folder / "new")
    (folder / "new").rename(folder / "model.safetensors")


def overwrite_weights(folder: Path, other: Path, dice: random.Random) -> None:
    """The same bytes written into the file that is being read."""
    data = (other / "model.safetensors").read_bytes()
    with (folder / "model.safetensors").open("r+b") as file:
        file.write(data)


def overwrite_a_part(folder: Path, other: Path, dice: random.Random) -> None:
    data = (other / "model.safetensors").read_bytes()
    start = dice.randrange(len(data) // 2, len(data))
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(start)
        file.write(data[start:])


def truncate_weights(folder: Path, other: Path, dice: random.Random) -> None:
    os.truncate(folder / "model.safetensors", dice.randrange((folder / "model.safetensors").stat().st_size))


def remove_weights(folder: Path, other: Path, dice: random.Random) -> None:
    (folder / "model.safetensors").unlink()


def edit_config(folder: Path, other: Path, dice: random.Random) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["rope_theta"] = 5e5
    (folder / "config.json").write_text(json.dumps(config))


def edit_tokenizer(folder: Path, other: Path, dice: random.Random) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["model_max_length"] = 77
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def replace_template(folder: Path, other: Path, dice: random.Random) -> None:
    (folder / "chat_template.jinja").write_text("{{ 1/0 }}")


def remove_everything(folder: Path, other: Path, dice: random.Random) -> None:
    shutil.rmtree(folder, ignore_errors=True)


CHANGES: tuple[Change, ...] = (
    replace_weights, overwrite_weights, overwrite_a_part, truncate_weights, remove_weights, edit_config, edit_tokenizer,
    replace_template, remove_everything,
)  # fmt: skip

MOMENTS = ("start", "trace", "calibration", "writing", "packaging", "verification")


def run_moving_sources(
    count: int, seed: int, sources: Sequence[Path], scratch: Path, tell: Callable[[str], None]
) -> tuple[list[Row], list[Finding]]:
    """`count` builds whose source changes at a random moment."""
    with_calibration = count > SHORT
    versions, lengths = prepare(sources, scratch, with_calibration, tell)
    dice, row, findings = random.Random(f"{seed}/moving"), Row("moving source"), []
    allowed = dict(versions.versions)
    changes: tuple[Change, ...] = (edit_config, edit_tokenizer)
    for change in changes:  # a change before anything is read is a version, too
        for calibrated in (False, True)[: 1 + with_calibration]:
            allowed |= _version(change, sources, scratch, calibrated)
    for number in range(count):
        change = CHANGES[number % len(CHANGES)]
        stage, part = dice.choice(MOMENTS), dice.random()
        stage = "trace" if stage == "calibration" and not with_calibration else stage
        calibrated = stage == "calibration"
        place = Workplace(scratch / "moving", allowed)
        place.put(scratch / "artifacts" / "1")
        source = scratch / "source" / sources[0].name
        shutil.rmtree(source, ignore_errors=True)
        shutil.copytree(sources[0], source)
        trace = launch.trace_anew if stage == "trace" else None
        running = launch.start(arguments(source, place.out, calibrated), scratch / "said", prepare=trace)
        if stage == "start" or running.wait_for(stage, 60):
            time.sleep(part * lengths.get(stage, 0.1))
        change(source, sources[1], dice)
        ended = running.wait(90)
        state, left = place.state(), place.beside()
        fault = end_fault(ended)
        if ended.code == 0 and state == NEITHER and source.is_dir():  # what lies there now may be a version of its own
            allowed |= _version_of(source, scratch / "artifacts" / f"moved-{number}", calibrated, scratch)
            state = place.state()
        if fault is None and ended.code == 0 and state.startswith("damaged"):
            fault = f"success, but the artifact is {state}"
        if fault is None and ended.code != 0 and state != "1":
            fault = f"refused, but the old artifact is {state}"
        if fault is None and left:
            fault = f"left behind: {left[:3]}"
        done = f"{change.__name__} at {part:.0%} of {stage}{', calibrated' if calibrated else ''}"
        row.inputs += 1
        row.successes += fault is None and ended.code == 0
        row.refusals += fault is None and ended.code != 0
        row.findings += fault is not None
        if fault is not None:
            findings.append(Finding("moving source", f"{number} of seed {seed}", (done,), "", "moving", fault, "", ""))
        said = ended.error_lines[-1][:150] if ended.error_lines else ""
        tell(f"source {number + 1}/{count} {done}: code {ended.code}, {state}; {fault or said}")
    return [row], findings


def _version(change: Change, sources: Sequence[Path], scratch: Path, calibrated: bool) -> dict[str, str]:
    """The artifact of the changed source."""
    name = f"{change.__name__}{'-calibrated' if calibrated else ''}"
    source = scratch / "version" / sources[0].name
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(sources[0], source)
    change(source, sources[1], random.Random(0))
    return _version_of(source, scratch / "artifacts" / name, calibrated, scratch)


def _version_of(source: Path, out: Path, calibrated: bool, scratch: Path) -> dict[str, str]:
    """The artifact of `source` as it lies there; none where it is refused."""
    ended = launch.start(arguments(source, out, calibrated, verify=False), scratch / "said").wait(120)
    return {fingerprint(out): out.name} if ended.code == 0 else {}
