"""parity.json and consumers.json of a stranger, or damaged: one line each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lfm2export.consumers.result import Check, ConsumerReport, ConsumerResult, Verdict
from lfm2export.errors import ArtifactError
from lfm2export.report.consumers import read_consumers
from lfm2export.verify.document import read_parity, write_parity
from lfm2export.verify.results import Verification

BAD = [b"", b"{", b"\xff\xfe{}", b"[" * 100_000, b"[1]", b'{"results": 5}', b'{"a": 1, "a": 2}', b'{"results": [{}]}']


def consumers() -> dict[str, Any]:
    result = ConsumerResult("genai", "q4", "cpu", Verdict.PASSED, "1", None, (Check("a", Verdict.PASSED, ""),), 0.5)
    return ConsumerReport("out", (result,)).to_dict()


def test_consumers_are_read_back(tmp_path: Path) -> None:
    assert read_consumers(tmp_path) == []
    (tmp_path / "consumers.json").write_text(json.dumps(consumers()))
    (row,) = read_consumers(tmp_path)
    assert (row.consumer, row.verdict, row.said) == ("genai", "passed", "1 of 1 checks, logits within 0.5")


@pytest.mark.parametrize("field", ["consumer", "dtype", "device", "verdict", "checks", "noise"])
@pytest.mark.parametrize("value", [{"a": 1}, True, [[1]]])
def test_a_field_of_another_type_is_named(tmp_path: Path, field: str, value: Any) -> None:
    document = consumers()
    document["results"][0][field] = value
    (tmp_path / "consumers.json").write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match=rf"is damaged \(consumers\.json\.results\[0\]\.{field}"):
        read_consumers(tmp_path)


@pytest.mark.parametrize("content", BAD)
def test_damaged_documents_are_one_line(tmp_path: Path, content: bytes) -> None:
    for name, read in (("consumers.json", read_consumers), ("parity.json", read_parity)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArtifactError) as caught:
            read(tmp_path)
        assert "\n" not in str(caught.value) and name in str(caught.value)


def test_every_field_of_a_verification_is_checked(tmp_path: Path, good: Verification) -> None:
    path = write_parity(good, tmp_path)
    document = json.loads(path.read_text())
    for field in set(document) - {"verdict"}:
        path.write_text(json.dumps(document | {field: [[{}]]}))
        with pytest.raises(ArtifactError, match=r"damaged|schema"):
            read_parity(tmp_path)
    path.write_text(json.dumps(document))
    assert read_parity(tmp_path).files
