"""The campaign of faults: that it finds what was planted, and its short form against the tool itself."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.faults import results
from benchmarks.faults.bases import SECRET, make_bases
from benchmarks.faults.content import Content
from benchmarks.faults.isolated import Allowed, Job, run_jobs
from benchmarks.faults.kills import SHARES, make_kills
from benchmarks.faults.launch import Ended
from benchmarks.faults.mutators import FAMILIES, Mutation, apply, draw
from benchmarks.faults.readers import Case, Finding, Row, make_cases, shares, smallest
from benchmarks.faults.surfaces import BY_NAME, SURFACES, Surface
from benchmarks.faults.verdict import line_fault
from benchmarks.faults.workplace import end_fault
from benchmarks.peers.locate import ROOT
from lfm2export.errors import SourceError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")

#: What any mutator may meet: its own kind of file, another, none.
SAMPLES = (
    b'{"a": [1, {"b": "c"}], "d": null}',
    b"",
    b"\xff\xfe\x00",
    b"{{ a }}\n---\nb: c\n",
    b"[]",
    b"7",
    b"\x01" + bytes(7) + b"7",
)


@pytest.fixture
def bases(tmp_path: Path) -> Path:
    """The least that a child process needs: a file to change, and what it may not see."""
    folder = tmp_path / "bases"
    for name in ("checkpoint", "artifact/onnx", "outside"):
        (folder / name).mkdir(parents=True)
    (folder / "checkpoint" / "file").write_bytes(b"sound")
    (folder / "outside" / "secret.txt").write_text(SECRET)
    return folder


def outcome(check: Callable[[Path], None], bases: Path, tmp_path: Path, content: Content | None = None) -> str:
    """The kind of what comes of `check` with strict limits."""
    surface = Surface("planted", "checkpoint", "file", ("bytes",), check, writes=("allowed",))
    allowed = Allowed(seconds=0.4, patience=1.0, bytes=200 << 20)
    job = Job(surface, content or Content(b"sound"))
    first, second = run_jobs([job, Job(SOUND, Content(b"sound"))], bases, tmp_path / "scratch", allowed)
    assert second.kind == "success", "the next input is not touched by the one before"
    return first.kind


SOUND = Surface("sound", "checkpoint", "file", ("bytes",), lambda folder: None)


def refuse(message: str) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        raise SourceError(message)

    return check


def test_what_is_good() -> None:
    assert line_fault("config.json has no vocab_size; add it") is None
    assert line_fault("") == "empty message"
    assert line_fault("x" * 1000) == "long line"
    for letter in "\n\x1b\0\u2028\x85":
        assert line_fault(f"a{letter}b") == "not one line"
    assert line_fault("a\u202eb") == "turns the line's direction"


def test_planted_faults_are_found(bases: Path, tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        raise KeyError("content")

    def spins(folder: Path) -> None:
        while True:
            pass

    def works_for_long(folder: Path) -> None:
        until = time.process_time() + 0.6
        while time.process_time() < until:
            pass

    def grows(folder: Path) -> None:
        bytearray(1 << 30)

    def looks_out(folder: Path) -> None:
        (folder / "file").read_bytes()

    def writes_out(folder: Path) -> None:
        (folder.parent / "escaped").write_text("x")

    def leaves(folder: Path) -> None:
        os.mkfifo(folder / "rest")  # no event tells of it: the listing does

    def starts_a_program(folder: Path) -> None:
        subprocess.run(["true"], check=True)

    def calls_out(folder: Path) -> None:
        import socket

        socket.create_connection(("127.0.0.1", 9))

    assert outcome(lambda folder: None, bases, tmp_path) == "success"
    assert outcome(refuse("one line"), bases, tmp_path) == "refusal"
    assert outcome(refuse("two\nlines"), bases, tmp_path) == "not one line"
    assert outcome(fails, bases, tmp_path) == "exception"
    assert outcome(spins, bases, tmp_path) == "does not end"
    assert outcome(works_for_long, bases, tmp_path) == "slow"
    assert outcome(grows, bases, tmp_path) == "exception"  # MemoryError: the limit is the system's
    assert outcome(lambda folder: os.kill(os.getpid(), 9), bases, tmp_path) == "crash"
    assert outcome(looks_out, bases, tmp_path) == "success"
    link = Content(kind="link", target="../outside/secret.txt")
    assert outcome(looks_out, bases, tmp_path, link) == "read outside"
    assert outcome(looks_out, bases, tmp_path, Content(kind="pipe")) == "waits forever"
    assert outcome(writes_out, bases, tmp_path) == "wrote outside"
    assert outcome(lambda folder: (folder / "new").touch(), bases, tmp_path) == "wrote"
    assert outcome(leaves, bases, tmp_path) == "left behind"
    assert outcome(starts_a_program, bases, tmp_path) == "ran a program"
    assert outcome(calls_out, bases, tmp_path) == "used the network"


def test_a_finding_has_the_mutations_that_it_needs(
    bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(folder: Path) -> None:
        if not (folder / "file").read_bytes():
            raise KeyError

    monkeypatch.setitem(BY_NAME, "planted", Surface("planted", "checkpoint", "file", ("bytes",), check))
    empty = next(
        seed for seed in range(99) if not apply(Content(b"sound"), [Mutation("bytes", "truncate", seed)])[0].data
    )
    needed = Mutation("bytes", "truncate", empty)
    case = Case("planted", (Mutation("bytes", "flip", 1), Mutation("bytes", "flip", 2), needed))
    (found,) = run_jobs([Job(BY_NAME["planted"], case.content(bases)[0])], bases, tmp_path / "scratch")
    finding = smallest([(case, found)], bases, tmp_path / "scratch")
    assert (finding.kind, finding.error, finding.case) == ("exception", "KeyError", f"planted {needed}")


def test_inputs_are_those_of_their_seed() -> None:
    surface = SURFACES[0]
    assert make_cases(surface, 20, 1) == make_cases(surface, 30, 1)[:20] != make_cases(surface, 20, 2)
    assert sum(shares(20_000).values()) == 20_000 and min(shares(20_000).values()) > 0
    for case in make_cases(surface, 50, 1):
        data = b'{"model_type": "lfm2", "layers": [1, 2]}'
        assert apply(Content(data), case.mutations) == apply(Content(data), case.mutations)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_mutators_take_whatever_there_is(family: str) -> None:
    changed = 0
    for name in FAMILIES[family]:
        for seed, data in enumerate(SAMPLES * 4):
            content, said = apply(Content(data), [Mutation(family, name, seed)])
            assert said and "\n" not in said[0]
            changed += content != Content(data)
    assert changed or family == "nothing"


def test_seldom_something_else_lies_in_the_place_of_the_file() -> None:
    dice = random.Random(0)
    drawn = [draw(("json",), "place", dice) for _ in range(500)]
    assert 10 < sum(mutations[-1].family == "place" for mutations in drawn) < 100
    assert {len(mutations) for mutations in drawn} == {1, 2, 3, 4}


def test_kills_cover_every_stage() -> None:
    assert {kill.stage for kill in make_kills(200, 1)} == set(SHARES)
    assert {kill.group for kill in make_kills(200, 1)} == {True, False}
    assert make_kills(6, 3) == make_kills(6, 3) and not any(kill.calibrated for kill in make_kills(6, 3))


def test_how_a_command_may_end() -> None:
    assert end_fault(Ended(0, "", "note\nnote\n", 1)) is None
    assert end_fault(Ended(2, "", "trace: started\nError: no; do\n", 1)) is None
    assert end_fault(Ended(2, "", "Error: no\nError: again\n", 1)) is not None
    assert end_fault(Ended(2, "", "Traceback\n", 1)) is not None
    assert end_fault(Ended(70, "", "x", 1)) is not None
    assert end_fault(Ended(-9, "", "", 1)) is not None


def test_results_are_kept_by_stage(tmp_path: Path) -> None:
    case, done = "build: config.json json.add:3", ("json.add: 'x' | \n",)
    finding = Finding("readers", case, done, "b''", "exception", "m", "E", "f:1")
    results.add("readers", results.made(1, 60, [Row("a", 3, 1, 1, 1, 0.5, 10**6), Row("b", 2, 2)], [finding]), tmp_path)
    results.add("kills", results.made(1, 60, [Row("kill: trace", 4, 1, 3)], []), tmp_path)
    stored = results.read(tmp_path)
    assert list(stored) == ["readers", "kills"] and stored["readers"].findings == (finding,)
    text = (tmp_path / "faults.md").read_text()
    assert "| all | 5 | 3 | 1 | 1 | 0.50 | 1 |" in text and "exception E f:1" in text
    assert "new artifact | old artifact" in text


def test_short_form(tmp_path: Path) -> None:
    """Inputs, kills and disks against the tool as it is; the whole is `python -m benchmarks.faults`."""
    program = [sys.executable, "-m", "benchmarks.faults", "--bases", str(make_bases(tmp_path / "bases").resolve())]
    words = [*program, "--only", "kills", "--only", "full", "--inputs", "3"]
    kills = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    words = [*program, "--only", "readers", "--inputs", "160", "--seed", "5"]
    readers = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    said, _ = kills.communicate()
    assert readers.returncode == 0, readers.stderr
    assert "readers: 160 inputs" in readers.stderr
    assert kills.returncode == 0, said
    assert "kills: 3 inputs" in said and "full: 3 inputs" in said
