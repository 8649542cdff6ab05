"""parity.md, the card's table and JUnit XML: the verdict first, nothing measured is 0, nothing decoded is markup."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree as ET

import pytest

from lfm2export.measures import Mean
from lfm2export.report import junit, markdown, words
from lfm2export.verify.results import Verification
from parity_records import NASTY


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "not measured"),
        (0.0, "0"),
        (1.23456, "1.23"),
        (0.000123456, "1.2e-4"),
        (1234.5, "1,234"),
        (math.inf, "infinite"),
        (-0.25, "-0.25"),
    ],
)
def test_figures_in_words(value: float | None, text: str) -> None:
    assert words.figure(value) == text


def test_only_all_is_all() -> None:
    assert words.share(1.0) == "100 %"
    assert words.share(0.99999999) == "99.99 %"
    assert words.share(None) == "not measured"
    assert words.mean(Mean(None, None, 0)) == "not measured"
    assert words.mean(Mean(0.5, None, 1)) == "0.5"


def test_decoded_text_is_visible() -> None:
    assert words.shown(" a\n") == "␣a⏎"
    assert words.shown("  ") == "␣␣"
    assert words.shown("") == "(nothing)"
    assert words.shown("\x1b\ud800") == "\\x1b\\ud800"


def test_markdown_says_the_verdict_first(good: Verification, failing: Verification) -> None:
    assert markdown.render(good).startswith("# ✅ Parity passed: fp32, fp16, q8, q4, q4f16\n")
    text = markdown.render(failing)
    assert text.startswith("# ❌ Parity FAILED for q4 (of fp32, fp16, q8, q4, q4f16)\n")
    assert text.index("block 7 of model.layers.0.w1") < text.index("## fp32")
    assert "present.2.key, prompt capital, step 0, 0.017, limit 0.001" in text


def test_markdown_holds_no_markup_of_the_artifact(failing: Verification) -> None:
    text = markdown.render(failing)
    text.encode()
    for bad in ("<script", "`x`", "*y*", "http://", "@me", "\x1b"):
        assert bad not in text
    assert not re.search(r"(?<!\\)\]\(", text), "a link"
    heads = [line for line in text.splitlines() if line.startswith("| dtype | prompt")]
    row = next(line for line in text.splitlines() if line.startswith("| q4 | river"))
    assert row.count("|") == heads[0].count("|")


def test_markdown_has_the_paired_comparison(good: Verification, unmeasured: Verification) -> None:
    assert "| q4 | their &#60;artifact&#62;, q4 | prefill |" in markdown.render(good)
    assert "Paired" not in markdown.render(unmeasured)


def test_markdown_of_nothing_measured(unmeasured: Verification) -> None:
    text = markdown.render(unmeasured)
    assert text.startswith("# ➖ Parity not measured")
    summary = text[: text.index("<details>")]
    rows = re.findall(r"^\| (?:logits|caches|KLD|same|perplexity|greedy)[^|]*\| ([^|]*) \|$", summary, re.MULTILINE)
    assert rows and set(rows) == {"not measured"}
    assert "Greedy generation: not measured." in text


def test_card_table(good: Verification, unmeasured: Verification) -> None:
    text = markdown.render_card(good)
    assert text.startswith("**Parity passed")
    assert "| `q4` | passed |" in text and "9.091 (9)" not in text
    assert "1 of 2 equal (1 near tie)" in text
    assert "<!--" not in markdown.render_card(good)
    assert markdown.render_card(unmeasured).count("not measured") >= 5


def test_junit(failing: Verification) -> None:
    root = ET.fromstring(junit.render(failing))
    assert root.attrib["failures"] == "2" and root.attrib["skipped"] == "5"
    suites = {suite.attrib["name"]: suite for suite in root}
    assert list(suites) == ["fp32", "fp16", "q8", "q4", "q4f16"]
    assert [case.attrib["name"] for case in suites["q4"]][:2] == ["weights", "arithmetic"]
    failures = suites["q4"].findall("testcase/failure")
    assert failures[0].attrib["message"] == "block 7 of model.layers.0.w1 is not its source's"
    assert "present.2.key" in (failures[1].text or "") and "alert(1)" in failures[1].attrib["message"]
    assert "\x1b" in NASTY and "\\x1b" in failures[1].attrib["message"]
    skipped = suites["fp32"].find("testcase[@name='long']/skipped")
    assert skipped is not None and skipped.attrib["message"] == "only with --long"
