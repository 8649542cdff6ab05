"""parity.html and the whole report: one file without requests, and an artifact whose hashes stay valid."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lfm2export.errors import ArtifactError, OutputError
from lfm2export.package.card import PARITY_BEGIN, PARITY_END
from lfm2export.package.manifest import check_manifest
from lfm2export.report import page, render_again, write_report
from lfm2export.report.facts import read_sizes
from lfm2export.report.svg import draw
from lfm2export.verify.results import Verification
from parity_records import BYTES, NASTY

SIZES = {dtype: {"attention": count // 3, "feed forward": count // 2} for dtype, count in BYTES.items()}
VOID = ("meta", "br", "path", "use", "rect")


class Page(HTMLParser):
    """Everything a page refers to, its elements, and whether each is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.refers: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                self.refers.append(value or "")
            assert not name.startswith("on")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.mark.parametrize("kld", [1e308, -1e308])
def test_figures_whose_sum_is_beyond_float64(good: Verification, kld: float) -> None:
    files = []
    for file in good.files:
        assert file.steps is not None
        points = tuple(replace(point, logits=replace(point.logits, kld=kld)) for point in file.steps.points)
        files.append(replace(file, steps=replace(file.steps, points=points, mean_kld=kld)))
    Page(page.render(replace(good, files=tuple(files)), SIZES, []))


@pytest.fixture(scope="module")
def text(failing: Verification) -> str:
    return page.render(failing, SIZES)


def test_page_is_one_file_that_asks_for_nothing(text: str) -> None:
    found = Page(text)
    assert all(refers.startswith("#") and refers[1:] in found.ids for refers in found.refers)
    assert len(set(found.ids)) == len(found.ids)
    assert not {"script", "img", "link", "iframe"} & set(found.tags)
    assert found.tags.count("svg") == 9
    for bad in ("@import", "url(http", "//", "#e0000"):
        assert bad not in text.replace("http://a", "")


def test_page_says_the_verdict_first_and_shows_failures(text: str) -> None:
    places = [text.index(f">{part}<") for part in ("Failures", "Files", "Checks", "Step by step", "Other routes")]
    assert text.index("<h1>Parity FAILED for q4") < places[0] and places == sorted(places)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text and NASTY[:20] not in text
    text.encode()


def test_page_of_nothing_measured_has_no_zeros(unmeasured: Verification) -> None:
    text = page.render(unmeasured, {})
    assert Page(text).tags.count("svg") == 0
    assert text.count("not measured") > 15
    assert ">0<" not in text and ">0 " not in text


def test_page_has_the_files_side_by_side_and_the_paired_comparison(text: str) -> None:
    table = text[text.index('<table class="wide">') : text.index("</table>")]
    assert table.count('<th scope="col">') == 5 and "rounding of activations" in table
    paired = text[text.index("Paired with another artifact") :]
    assert "their &lt;artifact&gt;, q4" in paired and "-0.002 ± 3.0e-4" in paired


def test_page_is_reproducible(failing: Verification, text: str) -> None:
    assert page.render(failing, SIZES) == text


def test_names_from_a_file_are_no_formulas(good: Verification) -> None:
    """matplotlib reads what stands between two dollars as one, and stops at what is none."""
    files = tuple(replace(file, dtype=f"$\\f{{$<b>{file.dtype}") for file in good.files)
    found = page.render(replace(good, files=files), {})
    assert "$\\f{$&lt;b&gt;q4" in found and "<b>q4" not in found


def test_page_without_files(good: Verification) -> None:
    Page(page.render(replace(good, files=()), {}))


@pytest.fixture
def artifact(tiny_artifact: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_artifact("last"), tmp_path / "artifact"))


def test_report_leaves_the_hashes_valid(artifact: Path, good: Verification) -> None:
    before = (artifact / "README.md").read_text()
    report = write_report(artifact, good, junit_file=artifact.parent / "made" / "junit.xml")
    assert report.card == artifact / "README.md" and report.junit is not None and report.junit.is_file()
    card = report.card.read_text()
    assert "**Parity passed" in card[card.index(PARITY_BEGIN) : card.index(PARITY_END)]
    assert "Not verified yet" in before and "Not verified yet" not in card
    assert check_manifest(artifact) == []
    assert set(read_sizes(artifact)) == {"fp32", "fp16", "q8", "q4", "q4f16"}


def test_rendered_again_it_is_the_same(artifact: Path, failing: Verification) -> None:
    report = write_report(artifact, failing)
    first = {path.name: path.read_bytes() for path in (report.json, report.markdown, report.html)}
    result, again = render_again(artifact)
    assert result.verdict == failing.verdict and again.card is not None
    assert {path.name: path.read_bytes() for path in (again.json, again.markdown, again.html)} == first


def test_a_foreign_folder_gets_a_report_beside_its_own_card(tmp_path: Path, good: Verification) -> None:
    (tmp_path / "README.md").write_text("# Someone's own card\n")
    assert write_report(tmp_path, good).card is None
    assert (tmp_path / "README.md").read_text() == "# Someone's own card\n"
    assert (tmp_path / "parity.html").is_file()


def test_what_cannot_be_written_or_read_is_one_line(tmp_path: Path, good: Verification) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_report(tmp_path / "missing", good)
    with pytest.raises(ArtifactError, match="verify"):
        render_again(tmp_path)


SCRIPT = """
import { chromium } from '%s';
const browser = await chromium.launch({ executablePath: '%s', args: ['--no-sandbox'] });
const found = [];
for (const width of [320, 390, 1280]) for (const colorScheme of ['light', 'dark']) {
  const page = await browser.newPage({ viewport: { width, height: 800 }, colorScheme });
  page.on('request', request => found.push('request'));
  page.on('console', message => found.push(message.text()));
  await page.goto('%s');
  const wide = await page.evaluate(() => document.documentElement.scrollWidth);
  if (wide > width) found.push(`${wide} > ${width}`);
}
console.log(JSON.stringify(found.filter(entry => entry !== 'request')), found.filter(e => e === 'request').length);
await browser.close();
"""


@pytest.mark.consumer
def test_page_in_a_browser_never_scrolls_sideways(text: str, tmp_path: Path) -> None:
    library = Path(__file__).parents[2] / "lfm2export/consumers/js/node_modules/playwright-core/index.mjs"
    chromium = shutil.which("chromium")
    if chromium is None or not library.is_file() or shutil.which("node") is None:
        pytest.skip("needs node, chromium, and the setup of lfm2export/consumers")
    (tmp_path / "parity.html").write_text(text)
    (tmp_path / "look.mjs").write_text(SCRIPT % (library, chromium, (tmp_path / "parity.html").as_uri()))
    done = subprocess.run(["node", tmp_path / "look.mjs"], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["[]", "6"]


def test_a_card_that_leads_out_of_the_folder_is_left_alone(tmp_path: Path, good: Verification) -> None:
    private = tmp_path / "private.md"
    private.write_text(f"private\n{PARITY_BEGIN}\n{PARITY_END}\n")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "README.md").symlink_to(private)
    assert write_report(folder, good).card is None
    assert (folder / "README.md").is_symlink() and "private\n" in private.read_text()


def test_plots_depend_on_nothing_around_them(tmp_path: Path) -> None:
    """Neither a matplotlibrc of the current folder nor a home that is not writable changes them, or says a word."""
    code = (
        "from lfm2export.report.svg import draw\n"
        "print(draw('kld', 'a plot', 3.0, lambda axes: axes.plot([1, 2], [3, 4])))"
    )
    usual = draw("kld", "a plot", 3.0, lambda axes: axes.plot([1, 2], [3, 4]))
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 9\nfont.size: 40\nnonsense: 1\n")
    home = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), os.devnull)
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={**{name: value for name, value in os.environ.items() if name != "MPLCONFIGDIR"}, **home},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout.rstrip("\n"), done.stderr) == (usual, "")
