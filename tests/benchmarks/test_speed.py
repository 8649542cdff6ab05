"""Rounds, ratios within them, what is stored and shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.peers.locate import PeerError
from benchmarks.speed import figures, markdown, rounds, store
from benchmarks.speed import javascript_worker as worker
from benchmarks.speed.contenders import CONTENDERS, JAVASCRIPT, Contender, by_name, command, files
from benchmarks.speed.rounds import Record, measure_rounds
from lfm2export.bench.results import Loaded, Run, Spread
from standin import write_standin

OURS = ("ours", *JAVASCRIPT)
REQUEST = {"threads": 1, "contexts": [8, 16], "decoded": 3}


def record(contender: str, number: int, prefill: float, decode: float, context: int = 128) -> Record:
    """Rates in tokens a second; 10 tokens decoded."""
    run = Run(context, 10, context / prefill, 10 / decode, 3_000_000, 1_000_000)
    return Record(contender, number, Loaded(0.5, 1_000_000, 2_000_000, 500_000), (run,), 0.01)


RECORDS = [
    record("ours", 0, 200, 40),
    record("llama-Q4_K_M", 0, 100, 20),
    record("ours", 1, 110, 24),
    record("llama-Q4_K_M", 1, 100, 30),
    record("ours", 2, 300, 33),
    record("llama-Q4_K_M", 2, 200, 30),
]
HEAD = store.Head("a machine", 2, 3e10, {"onnxruntime": "1"}, {"ours": 5_000_000, "llama-Q4_K_M": 4_000_000})


def test_ratios_are_of_the_same_round() -> None:
    """Ratios 2, .8 and 1.1; the ratio of the medians would be 33 / 30."""
    found = figures.ratio(RECORDS, "ours", "llama-Q4_K_M", 128, "decode")
    assert found is not None
    assert (found.median, found.low, found.high, found.count) == pytest.approx((1.1, 0.8, 2.0, 3))
    assert figures.rate(RECORDS, "ours", 128, "prefill") == Spread(200, 110, 300, 3)


def test_what_was_not_measured_is_none() -> None:
    assert figures.ratio(RECORDS, "ours", "llama-Q4_0", 128, "decode") is None
    assert figures.rate(RECORDS, "ours", 512, "decode") is None
    unknown = Record("ours", 0, Loaded(0.5, None, None, None), (Run(8, 1, 1.0, 1.0, None, None),), None)
    assert figures.peak([unknown], "ours", "anonymous") is None and figures.loaded_resident([unknown], "ours") is None


def test_disturbed_rounds_count_only_where_every_round_was() -> None:
    loud = [replace(found, others=0.5) for found in RECORDS]
    assert figures.rates(loud, "ours", 128, "decode").keys() == {0, 1, 2}
    assert figures.rates([*loud[:4], *RECORDS[4:]], "ours", 128, "decode").keys() == {2}


def test_targets() -> None:
    assert figures.target("ours", "llama-Q4_K_M", "decode", 128) == 1.3
    assert figures.target("ours", "llama-Q4_K_M", "decode", 4096) == 1.5
    assert figures.target("ours", "llama-Q4_0", "decode", 128) is None
    assert figures.target("ours-q8", "llama-Q4_K_M", "prefill", 128) == 2.2
    assert figures.target("ours-128", "llama-Q4_K_M", "prefill", 128) == 1.15
    assert figures.target("ours-128", "ours", "decode", 128) is None
    names = {contender.name for contender in CONTENDERS}
    assert {name for aim in figures.TARGETS for name in (aim.peer, aim.ours) if name is not None} <= names


def test_a_run_replaces_those_that_share_a_context(tmp_path: Path) -> None:
    store.add("350M", HEAD, RECORDS, tmp_path)
    store.add("350M", HEAD, [record("ours", 0, 10, 5, context=4096)], tmp_path)
    assert [run.contexts for run in store.read("350M", tmp_path)] == [(128,), (4096,)]
    store.add("350M", HEAD, [record("ours", 0, 20, 6, context=4096)], tmp_path)
    first, second = store.read("350M", tmp_path)
    assert list(first.records) == RECORDS and first.head == HEAD
    replaced = figures.rate(second.records, "ours", 4096, "prefill")
    assert replaced is not None and replaced.median == pytest.approx(20)
    store.add("1.2B", HEAD, RECORDS, tmp_path)
    assert store.sizes(tmp_path) == ["350M", "1.2B"]


def test_runs_of_other_machines_and_of_other_contenders_stay(tmp_path: Path) -> None:
    store.add("350M", HEAD, RECORDS, tmp_path)
    store.add("350M", replace(HEAD, machine="another"), RECORDS, tmp_path)
    store.add("350M", replace(HEAD, sizes={"ours": 1, "wasm-q4": 1}), RECORDS[:1], tmp_path)
    kept = [(run.head.machine, set(run.head.sizes)) for run in store.read("350M", tmp_path)]
    assert kept == [("a machine", set(HEAD.sizes)), ("a machine", {"ours", "wasm-q4"}), ("another", set(HEAD.sizes))]
    store.add("350M", replace(HEAD, sizes={**HEAD.sizes, "wasm-q4": 1}), RECORDS, tmp_path)
    assert [run.head.machine for run in store.read("350M", tmp_path)] == ["a machine", "another"]


def test_further_rounds_come_behind_those_of_the_same_files(tmp_path: Path) -> None:
    store.add("350M", HEAD, RECORDS, tmp_path)
    again = [record("ours", 0, 400, 50), record("llama-Q4_K_M", 0, 100, 25)]
    store.add("350M", replace(HEAD, read_bandwidth=4e10), again, tmp_path, further=True)
    (found,) = store.read("350M", tmp_path)
    assert [one.round for one in found.records] == [0, 0, 1, 1, 2, 2, 3, 3] and found.head.read_bandwidth == 4e10
    assert figures.rates(found.records, "ours", 128, "decode")[3] == pytest.approx(50)
    store.add("350M", replace(HEAD, versions={"onnxruntime": "2"}), again, tmp_path, further=True)
    (found,) = store.read("350M", tmp_path)
    assert len(found.records) == 2  # other versions: a run of its own, in place of the old one


def test_files_in_a_browser_are_compared_with_q4_there(tmp_path: Path) -> None:
    records = [record("wasm-q4", 0, 50, 2), record("wasm-q8", 0, 100, 28), record("ours", 0, 500, 60)]
    head = replace(HEAD, sizes={"ours": 5_000_000, "wasm-q4": 5_000_000, "wasm-q8": 7_000_000})
    text = markdown.render({"350M": [store.Measured(head, tuple(records))]})
    assert "| times as fast as | q4 in Chromium, wasm (Transformers.js) |" in text
    assert "| q8 in Chromium, wasm (Transformers.js): decode 128 | 14.00 (14.00 to 14.00), aim 13.00 reached |" in text
    assert text.count("times as fast as") == 1  # no peer, and nothing in Node


def test_q8_is_compared_with_its_blocks_and_with_q4() -> None:
    records = [record("ours", 0, 500, 60), record("ours-q8", 0, 1000, 66), record("ours-q8-blocks", 0, 500, 50)]
    head = replace(HEAD, sizes={name: 5_000_000 for name in ("ours", "ours-q8", "ours-q8-blocks")})
    text = markdown.render({"350M": [store.Measured(head, tuple(records))]})
    assert "| times as fast as | lfm2export q4 | lfm2export q8, --q8 blocks |" in text
    assert "decode 128 | 1.10 (1.10 to 1.10), aim 1.00 reached | 1.32 (1.32 to 1.32), aim 1.20 reached |" in text
    assert "prefill 128 | 2.00 (2.00 to 2.00) | 2.00 (2.00 to 2.00), aim 2.20 missed |" in text
    assert text.count("times as fast as") == 1


def test_the_javascript_worker_answers_as_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, asked = write_standin(tmp_path), []

    def measured(runtime: Any, folder: Path, request: Mapping[str, Any], progress: Any) -> dict[str, Any]:
        asked.append(request)
        return {
            "loaded": {},
            "runs": [{"context": 8}, {"context": 8, "warm": 1}, {"context": 16}, {"context": 16, "warm": 1}],
        }

    monkeypatch.setattr(worker, "find_runtime", lambda name, device, folder: (name, device))
    monkeypatch.setattr(worker, "measure_file", measured)
    request = {**REQUEST, "folder": str(folder), "dtype": "q4", "repeats": 1, "runtime": "node", "device": "cpu"}
    monkeypatch.setattr(sys, "argv", ["worker", json.dumps(request)])
    worker.main()
    warm = [{"context": 8, "warm": 1}, {"context": 16, "warm": 1}]
    assert json.loads(capsys.readouterr().out) == {"loaded": {}, "runs": warm}
    assert asked[0]["repeats"] == 2
    assert asked[0]["vocabulary"] == 40 and asked[0]["contexts"] == REQUEST["contexts"]
    monkeypatch.setattr(sys, "argv", ["worker", json.dumps({**request, "folder": str(tmp_path / "none")})])
    worker.main()
    assert "is not a folder" in json.loads(capsys.readouterr().out)["error"]


def test_the_table_says_what_was_reached(tmp_path: Path) -> None:
    text = markdown.render({"350M": [store.Measured(HEAD, tuple(RECORDS))]})
    assert "## LFM2-350M, context 128" in text and "a machine; 2 threads; memory reads 30 GB/s; 3 rounds" in text
    assert "| 1.50 (1.10 to 2.00), aim 1.15 reached |" in text
    assert "| 1.10 (0.80 to 2.00), aim 1.30 missed |" in text
    assert "| 5 | 0.50 (0.50 to 0.50) | 2 | 3 | 0.2 |" in text


def test_rounds_take_turns_and_our_worker_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two contenders that are both a stand-in of ours."""
    folder = write_standin(tmp_path, name="model_q4.onnx")
    monkeypatch.setattr(rounds, "ATTEMPTS", 1)
    monkeypatch.setattr(rounds, "PATIENCE", 0.0)
    seen: list[Record] = []
    made = {name: (Contender(name, "ours", name, lambda source, out: None), folder) for name in ("a", "b")}
    records = measure_rounds(made, REQUEST, 2, on_record=seen.append)
    assert [(found.round, found.contender) for found in seen] == [(0, "a"), (0, "b"), (1, "b"), (1, "a")]
    assert records == seen and [run.context for run in seen[0].runs] == [8, 16]
    assert all(run.decoded == 3 and run.decode_seconds > 0 for found in seen for run in found.runs)
    assert rounds.from_json(json.loads(json.dumps(rounds.to_json(records)))) == records


def test_no_round_begins_that_would_end_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "_measure", lambda contender, path, request, number: RECORDS[0])
    made = {"ours": (by_name("ours"), tmp_path)}
    assert len(measure_rounds(made, REQUEST, 5, on_record=lambda found: None, seconds=0.0)) == 1


@pytest.mark.parametrize(
    ("others", "runs", "kept"), [([0.0], 1, 0.0), ([0.2, 0.01], 2, 0.01), ([0.3, 0.1, 0.2], 3, 0.1)]
)
def test_a_disturbed_run_is_run_again(
    monkeypatch: pytest.MonkeyPatch, others: list[float], runs: int, kept: float
) -> None:
    left = list(others)

    def measured(contender: Contender, path: Path, request: Mapping[str, Any], number: int) -> Record:
        return Record("ours", number, Loaded(1.0, None, None, None), (), left.pop(0))

    monkeypatch.setattr(rounds, "_measure", measured)
    found = measure_rounds({"ours": (by_name("ours"), Path())}, REQUEST, 1, on_record=lambda record: None)
    assert found[0].others == kept and len(others) - len(left) == runs


def test_others_on_the_cores_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "usable_cores", lambda: 2)
    assert rounds.others_share(busy=15.0, own=12.0, wall=10.0) == pytest.approx(0.15)
    assert rounds.others_share(busy=12.0, own=12.1, wall=10.0) == 0.0


def test_a_run_waits_until_the_cores_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Busy for two seconds, then idle; and patience ends where they are never left alone."""
    monkeypatch.setattr(rounds, "usable_cores", lambda: 1)
    clock = [0.0]
    monkeypatch.setattr(rounds, "time", SimpleNamespace(perf_counter=lambda: clock[0], sleep=lambda s: advance(s)))
    monkeypatch.setattr(rounds, "busy_seconds", lambda: min(clock[0], 2.0))

    def advance(seconds: float) -> None:
        clock[0] += seconds

    rounds.wait_for_calm(60.0)
    assert clock[0] == 3.0
    monkeypatch.setattr(rounds, "busy_seconds", lambda: clock[0])
    rounds.wait_for_calm(10.0)
    assert clock[0] == 13.0


def test_a_worker_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match=r"ours: .*is not a folder"):
        measure_rounds({"ours": (by_name("ours"), tmp_path / "missing")}, REQUEST, 1, on_record=lambda found: None)


def test_what_each_worker_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for peer in ("LLAMA", "GENAI"):
        (tmp_path / peer / "bin").mkdir(parents=True)
        (tmp_path / peer / "bin" / "python").touch()
        monkeypatch.setenv(f"LFM2EXPORT_PEER_{peer}", str(tmp_path / peer))
    for contender in CONTENDERS:
        program, asked = command(contender, tmp_path / contender.name, REQUEST)
        assert asked.items() >= REQUEST.items() and str(tmp_path / contender.name) in asked.values()
        assert program[0] == sys.executable if contender.kind in OURS else str(tmp_path) in program[0]
        assert asked.get("dtype") == (contender.dtype if contender.kind in OURS else None)


def test_sizes_are_of_graph_and_weights(tmp_path: Path) -> None:
    folder = write_standin(tmp_path, name="model_q4.onnx")
    assert [path.name for path in files(by_name("ours"), folder)] == ["model_q4.onnx"]
    assert files(by_name("llama-Q4_0"), tmp_path / "file") == [tmp_path / "file"]
