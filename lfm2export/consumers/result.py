"""What a consumer was asked and what came of it, as data: verdicts, checks, one result per consumer and file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

SCHEMA = 1


class Verdict(StrEnum):
    """NOT_RUN always comes with its reason; it is neither good nor bad."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class Check:
    """One question to a consumer, such as "greedy: chat", and what speaks for the answer."""

    name: str
    verdict: Verdict
    detail: str


@dataclass(frozen=True)
class ConsumerResult:
    """One model file in one consumer.

    consumer: such as ``transformers.js/node``. version: of the library and the runtime, None if it did not say.
    device: cpu, wasm, webgpu. reason: why it was not run, or the error that ended it. noise: the largest difference of
    a logit from the reference's, over steps that were fed the same tokens, None if none was measured.
    """

    consumer: str
    dtype: str
    device: str
    verdict: Verdict
    version: str | None = None
    reason: str | None = None
    checks: tuple[Check, ...] = ()
    noise: float | None = None
    seconds: float | None = None

    @staticmethod
    def not_run(consumer: str, dtype: str, device: str, reason: str, version: str | None = None) -> ConsumerResult:
        return ConsumerResult(consumer, dtype, device, Verdict.NOT_RUN, version, reason)


def judged(checks: Sequence[Check]) -> Verdict:
    """The verdict of all `checks` together; nothing checked is nothing proven."""
    if not checks:
        return Verdict.FAILED
    return Verdict.FAILED if any(check.verdict is Verdict.FAILED for check in checks) else Verdict.PASSED


@dataclass(frozen=True)
class ConsumerReport:
    """Every consumer and file of one artifact; folder: its name, without where it lies."""

    folder: str
    results: tuple[ConsumerResult, ...]
    schema: int = field(default=SCHEMA)

    @property
    def good(self) -> bool:
        """No consumer failed, and at least one was run."""
        verdicts = [result.verdict for result in self.results]
        return Verdict.FAILED not in verdicts and Verdict.PASSED in verdicts

    def without_places(self, places: Mapping[str, str]) -> ConsumerReport:
        """The same with every place (a folder of this machine) in a reason or detail replaced by what stands for it."""

        def said(text: str) -> str:
            for place, name in places.items():
                text = text.replace(place, name)
            return text

        return replace(
            self,
            results=tuple(
                replace(
                    found,
                    reason=said(found.reason) if found.reason is not None else None,
                    checks=tuple(replace(check, detail=said(check.detail)) for check in found.checks),
                )
                for found in self.results
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self) | {"good": self.good}

    def to_markdown(self) -> str:
        """A table of verdicts for people, failures explained below it."""
        lines = ["| consumer | version | file | device | verdict | |", "|---|---|---|---|---|---|"]
        for found in self.results:
            said = found.reason or f"{len(found.checks)} checks"
            if found.noise is not None:
                said += f", logits within {found.noise:.2g}"
            version = found.version or ""
            lines.append(
                f"| {found.consumer} | {version} | {found.dtype} | {found.device} | {found.verdict} | {said} |"
            )
        failures = [(r, c) for r in self.results for c in r.checks if c.verdict is Verdict.FAILED]
        for result, check in failures:
            lines.append(f"\n- {result.consumer} {result.dtype} {result.device}, {check.name}: {check.detail}")
        return "\n".join(lines) + "\n"
