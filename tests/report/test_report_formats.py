"""The table of formats chosen for a target: from build.json into parity.md, parity.html and the model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lfm2export.errors import ArtifactError
from lfm2export.package.manifest import FILE, SCHEMA_VERSION
from lfm2export.report import markdown, page, plots
from lfm2export.report.formats import FormatTable, read_formats
from lfm2export.verify.results import Verification

NAMES = (
    "model.layers.0.conv.in_proj.weight",
    "model.layers.0.feed_forward.w1.weight+w3",
    "model.layers.1.self_attn.q_proj.weight+k_proj+v_proj",
    "model.layers.1.self_attn.out_proj.weight",
    "model.embed_tokens.weight",
)


def formats() -> dict[str, Any]:
    rows = [
        {
            "name": name,
            "parameters": 1_000_000 * (number + 1),
            "bits": 8 if number % 2 else 4,
            "block_size": 32 << number % 3,
            "symmetric": bool(number % 2),
            "bytes": 578_125 + number,
            "kld": 1.25e-4,
            "kld_4_bit": 3e-4 * (number + 1),
        }
        for number, name in enumerate(NAMES)
    ]
    target = {"value": 5.25, "unit": "bits per weight"}
    return {"target": target, "text": "a|text", "tokens": 4096, "predicted_kld": 0.00321, "matrices": rows}


def write(folder: Path, **changed: Any) -> Path:
    manifest = {"schema_version": SCHEMA_VERSION, "files": {}, "formats": formats() | changed}
    (folder / FILE).write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def table(tmp_path: Path) -> FormatTable:
    found = read_formats(write(tmp_path))
    assert found is not None
    return found


def test_rows_are_those_of_the_manifest(table: FormatTable) -> None:
    assert (table.target, table.text, table.tokens, table.kld) == ("5.25 bits per weight", "a|text", 4096, 0.00321)
    assert [row.matrix for row in table.rows] == list(NAMES)
    assert [row.format for row in table.rows[:2]] == ["4 bits, blocks of 32 with zero points", "8 bits, blocks of 64"]
    assert table.rows[0].pays == pytest.approx(3e-4 / 0.578125)


def test_a_folder_without_a_choice_has_no_table(tmp_path: Path) -> None:
    assert read_formats(tmp_path) is None
    (tmp_path / FILE).write_text(json.dumps({"schema_version": SCHEMA_VERSION, "files": {}}))
    assert read_formats(tmp_path) is None
    row = formats()["matrices"][0]
    damaged = [row | {"name": "table"}, row | {"name": "<b>.x"}, row | {"parameters": 0}]
    for changed in (*({"matrices": [one]} for one in ({}, *damaged)), {"tokens": None}, {"target": "small"}):
        with pytest.raises(ArtifactError, match="formats are damaged"):
            read_formats(write(tmp_path, **changed))


def test_markdown_has_every_matrix(good: Verification, table: FormatTable) -> None:
    text = markdown.render(good, formats=table)
    assert "chosen for 5.25 bits per weight" in text and "(a&#124;text)" in text
    assert "<summary>Formats of 5 matrices</summary>" in text
    assert "| 4,000,000 | 0.0012 | 5.2e-4 | 8 bits, blocks of 32 | 578,128 | 1.3e-4 |" in text
    assert "Bits where they pay" not in markdown.render(good)


def test_the_page_has_plot_and_table(good: Verification, table: FormatTable) -> None:
    text = page.render(good, {}, formats=table)
    assert text.count('data-label="matrix"') == len(NAMES)
    assert 'aria-label="What each matrix loses in 4 bits per megabyte"' in text
    for kind in ("in_proj", "w1 w3", "q k v", "attention out_proj", "table"):
        assert f">{kind}</text>" in text
    assert "Bits where they pay" not in page.render(good, {})
    assert plots.bits_where_they_pay(FormatTable("", "", 0, 0.0, ())) is None
