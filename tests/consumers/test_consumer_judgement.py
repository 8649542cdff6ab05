"""What "equal tokens" means, on made-up numbers; verdicts, reports, and consumers that are not there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from lfm2export.consumers import check_consumers, locate, run_check_consumers
from lfm2export.consumers.prompts import BASIC_EXAMPLE, TOOLS_EXAMPLE, replaced
from lfm2export.consumers.reference import NOISE_LIMITS, Continuation, Top, compare, judge
from lfm2export.consumers.result import Check, ConsumerReport, ConsumerResult, Verdict, judged
from lfm2export.errors import ArtifactError, Lfm2ExportError

STEPS, VOCABULARY = 8, 16


@pytest.fixture
def wanted() -> Continuation:
    """Eight steps whose two best logits are 0.5 apart."""
    rows = np.random.default_rng(7).normal(0.0, 1.0, (STEPS, VOCABULARY)).astype(np.float32)
    tokens = [int(np.argmax(row)) for row in rows]
    for row, token in zip(rows, tokens, strict=True):
        row[token] = np.delete(row, token).max() + np.float32(0.5)
    return Continuation((1, 2), tuple(tokens), tuple(rows))


def seen(wanted: Continuation, noise: float) -> list[Top]:
    """What a consumer saw whose logits are all `noise` higher."""
    return [[[t, float(row[t]) + noise] for t in np.argsort(row)[-4:]] for row in wanted.logits]


def changed(wanted: Continuation, at: int) -> list[int]:
    """The tokens, with the second best one at step `at`."""
    second = int(np.argsort(wanted.logits[at])[-2])
    return [*wanted.tokens[:at], second, *wanted.tokens[at + 1 :]]


def verdicts(checks: Sequence[Check]) -> list[Verdict]:
    return [check.verdict for check in checks]


@pytest.mark.parametrize("dtype", NOISE_LIMITS)
def test_equal_tokens_pass(wanted: Continuation, dtype: str) -> None:
    checks, noise = judge(dtype, [compare("plain", wanted, wanted.tokens, seen(wanted, 0.0))])
    assert verdicts(checks) == [Verdict.PASSED, Verdict.PASSED]
    assert noise == 0.0


def test_fp32_has_no_excuse(wanted: Continuation) -> None:
    rows = [row.copy() for row in wanted.logits]
    rows[6][changed(wanted, 6)[6]] = rows[6][wanted.tokens[6]]  # a perfect tie
    tied = Continuation(wanted.prompt, wanted.tokens, tuple(rows))
    checks, _ = judge("fp32", [compare("plain", tied, changed(wanted, 6), seen(tied, 0.0))])
    assert checks[0].verdict is Verdict.FAILED


@pytest.mark.parametrize(("noise", "verdict"), [(0.3, Verdict.PASSED), (0.2, Verdict.FAILED)])
def test_a_quantized_file_may_differ_where_noise_explains_it(
    wanted: Continuation, noise: float, verdict: Verdict
) -> None:
    found = compare("plain", wanted, changed(wanted, 6), seen(wanted, noise))
    assert found.at == 6
    assert found.margin == pytest.approx(0.5)
    checks, measured = judge("q4", [found])
    assert measured == pytest.approx(noise, abs=1e-5)
    assert checks[0].verdict is verdict
    assert "token 6 is" in checks[0].detail


def test_the_step_of_the_difference_does_not_excuse_itself(wanted: Continuation) -> None:
    top = seen(wanted, 0.0)
    second = changed(wanted, 6)[6]
    top[6] = [[second, float(wanted.logits[6].max()) + 9.0]]
    checks, noise = judge("q4", [compare("plain", wanted, changed(wanted, 6), top)])
    assert noise == 0.0
    assert checks[0].verdict is Verdict.FAILED


def test_noise_must_have_been_measured(wanted: Continuation) -> None:
    checks, _ = judge("q4", [compare("plain", wanted, changed(wanted, 0), seen(wanted, 0.3))])
    assert "too few equal steps" in checks[0].detail
    assert checks[0].verdict is Verdict.FAILED


def test_noise_has_a_limit(wanted: Continuation) -> None:
    beyond = 2 * NOISE_LIMITS["q4"]
    checks, _ = judge("q4", [compare("plain", wanted, wanted.tokens, seen(wanted, beyond))])
    assert verdicts(checks) == [Verdict.PASSED, Verdict.FAILED]
    assert "limit" in checks[1].detail


@pytest.mark.parametrize("count", [0, 5])
def test_too_few_tokens_fail(wanted: Continuation, count: int) -> None:
    checks, _ = judge("q8", [compare("plain", wanted, wanted.tokens[:count], seen(wanted, 0.0))])
    assert checks[0].verdict is Verdict.FAILED
    assert f"{count} tokens, expected {STEPS}" in checks[0].detail


def test_too_many_tokens_fail(wanted: Continuation) -> None:
    checks, _ = judge("q8", [compare("plain", wanted, [*wanted.tokens, 3], seen(wanted, 0.0))])
    assert checks[0].verdict is Verdict.FAILED


def test_nothing_checked_is_nothing_proven() -> None:
    assert judged([]) is Verdict.FAILED
    report = ConsumerReport("out", (ConsumerResult.not_run("genai", "q4", "cpu", "not installed"),))
    assert not report.good


def test_a_report_reads_well_for_machines_and_people() -> None:
    checks = (Check("tokens: plain", Verdict.FAILED, "token 3 is 7, expected 9 by 0.4"),)
    report = ConsumerReport(
        "out",
        (
            ConsumerResult("node", "q4", "cpu", Verdict.FAILED, "4.3.2", checks=checks, noise=0.01, seconds=1.0),
            ConsumerResult.not_run("genai", "q4", "cpu", "not installed"),
        ),
    )
    read = json.loads(json.dumps(report.to_dict()))
    assert [result["verdict"] for result in read["results"]] == ["failed", "not run"]
    assert read["results"][1]["noise"] is None
    assert not read["good"]
    text = report.to_markdown()
    assert "token 3 is 7" in text
    assert "not installed" in text


def test_what_is_not_installed_is_reported_with_the_line_that_installs_it(
    shipped_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locate, "JS", tmp_path)
    monkeypatch.setattr(locate, "TOOLS", tmp_path)
    said: list[str] = []
    absent = ["node", "browser", "node-webgpu", "genai"]
    good = run_check_consumers(shipped_artifact, dtypes=["q4"], consumers=absent, write=False, show=said.append)
    assert not good  # nothing was run, so nothing is proven
    assert said[0].count("not run") == 5  # the browser has two devices
    assert said[0].count("setup.sh") == 5


def test_bad_questions_are_refused(shipped_artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(Lfm2ExportError, match=r"consumer is 'nodejs', expected one or more of onnxruntime, node"):
        check_consumers(shipped_artifact, consumers=["nodejs"])
    with pytest.raises(ArtifactError, match="holds none of"):
        check_consumers(tmp_path)
    with pytest.raises(ValueError, match="is not in the example"):
        replaced("abc", "d", "e")


def test_the_cards_examples_are_changed_in_dtype_and_device_alone() -> None:
    basic, tools = BASIC_EXAMPLE.request("q4", "cpu"), TOOLS_EXAMPLE.request("q4", None)
    assert '{ dtype: "q4" }' in basic["source"]
    assert '{ dtype: "q4", device: "webgpu" }' in tools["source"]
    assert '{ dtype: "fp32", device: "cpu" }' in TOOLS_EXAMPLE.request("fp32", "cpu")["source"]
    for request in (basic, tools):
        assert request["place"] in request["source"]
