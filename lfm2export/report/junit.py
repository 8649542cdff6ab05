"""The verdicts as JUnit XML: one suite per file of the artifact, one case per check. Every CI system can show it."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

from lfm2export.report import facts, words
from lfm2export.verify.figures import Verdict
from lfm2export.verify.results import Check, FileResult, Verification


def render(result: Verification) -> bytes:
    """The document, UTF-8."""
    root = ET.Element(
        "testsuites", {"name": "lfm2export parity", **_counts([c for f in result.files for c in f.checks])}
    )
    root.set("time", f"{result.seconds:.3f}")
    for file in result.files:
        root.append(_suite(file, result))
    ET.indent(root)
    document: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def write_junit(path: Path, result: Verification) -> Path:
    """Write `path`; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(render(result))
    return path


def _suite(file: FileResult, result: Verification) -> ET.Element:
    suite = ET.Element("testsuite", {"name": _clean(file.dtype), **_counts(file.checks), "time": f"{file.seconds:.3f}"})
    for check in file.checks:
        case = ET.SubElement(suite, "testcase", {"classname": f"parity.{_clean(file.dtype)}", "name": str(check.name)})
        case.set("time", f"{check.seconds:.3f}")
        if check.verdict is Verdict.FAILED:
            failures = check.failures
            message = failures[0].message if failures else check.summary
            failure = ET.SubElement(case, "failure", {"message": _clean(message), "type": str(check.name)})
            lines = [found.message + _where(facts.place(found, result)) for found in failures]
            failure.text = _clean("\n".join([check.summary, *lines]))
        elif check.verdict is Verdict.NOT_MEASURED:
            ET.SubElement(case, "skipped", {"message": _clean(check.summary or words.NOT_MEASURED)})
        else:
            ET.SubElement(case, "system-out").text = _clean(check.summary)
    return suite


def _where(where: str) -> str:
    return f" ({where})" if where else ""


def _counts(checks: list[Check] | tuple[Check, ...]) -> dict[str, str]:
    failed = sum(1 for check in checks if check.verdict is Verdict.FAILED)
    skipped = sum(1 for check in checks if check.verdict is Verdict.NOT_MEASURED)
    return {"tests": str(len(checks)), "failures": str(failed), "errors": "0", "skipped": str(skipped)}


def _clean(text: str) -> str:
    """`text` without the characters that XML 1.0 cannot hold, not even escaped."""
    return "".join(c if _allowed(ord(c)) else c.encode("unicode_escape").decode() for c in text)


def _allowed(code: int) -> bool:
    return code in (9, 10, 13) or 0x20 <= code <= 0xD7FF or 0xE000 <= code <= 0xFFFD or code >= 0x10000
