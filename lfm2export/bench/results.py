"""What a benchmark found, as data. Times are seconds, sizes bytes, rates per second."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Loaded:
    """A session just opened: seconds, and memory of the process before and after in bytes."""

    seconds: float
    base_resident: int | None
    loaded_resident: int | None
    loaded_anonymous: int | None


@dataclass(frozen=True)
class Run:
    """A prompt of `context` tokens, then `decoded` more: seconds of each part, and memory peaks so far in bytes."""

    context: int
    decoded: int
    first_token_seconds: float
    decode_seconds: float
    peak_resident: int | None
    peak_anonymous: int | None


@dataclass(frozen=True)
class Spread:
    """Repetitions of one figure: their median, lowest and highest, and how many there were."""

    median: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class ContextResult:
    """One context length, in tokens: the prompt's, after which `decoded` tokens were chosen greedily in each run.

    first_token_seconds: from the prompt's tokens to the first new one. prefill_rate: prompt tokens a second until then.
    decode_rate: tokens a second after the first. peak_resident, peak_anonymous: of the process so far (contexts run
    from short to long); the second is sampled. bytes_per_token: what a decode step reads
    (:mod:`lfm2export.bench.traffic`). bandwidth_share: bytes_per_token * decode_rate over what memory gives; above 1
    the weights sit in the processor's cache. skipped: why nothing was measured here; all else is then None.
    """

    context: int
    decoded: int | None = None
    first_token_seconds: Spread | None = None
    prefill_rate: Spread | None = None
    decode_rate: Spread | None = None
    peak_resident: int | None = None
    peak_anonymous: int | None = None
    bytes_per_token: int | None = None
    bandwidth_share: float | None = None
    skipped: str | None = None


@dataclass(frozen=True)
class FileResult:
    """One model file.

    bytes: graph and data. load_seconds: opening a session on files that the system holds in memory, each time in a new
    process; by Transformers.js once, with reading the files. base_resident, loaded_resident, loaded_anonymous: of
    the process before and after. resident_ratio: loaded_resident over bytes. loop: "buffered" where one buffer serves
    as past and present, "copied", or "Transformers.js".
    """

    dtype: str
    file: str
    bytes: int
    loop: str
    load_seconds: Spread
    base_resident: int | None
    loaded_resident: int | None
    loaded_anonymous: int | None
    resident_ratio: float | None
    contexts: tuple[ContextResult, ...]


@dataclass(frozen=True)
class BenchResult:
    """A folder's files on one machine.

    runtime: python, node or browser; device: cpu, wasm or webgpu. read_bandwidth: bytes a second, the best of the read
    test in the same run; None where there was none.
    """

    folder: str
    runtime: str
    device: str
    threads: int
    repeats: int
    read_bandwidth: float | None
    machine: str
    versions: dict[str, str]
    files: tuple[FileResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values only."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}


def spread(values: Sequence[float]) -> Spread:
    """The spread of one value or more."""
    return Spread(statistics.median(values), min(values), max(values), len(values))
