"""The same result by other routes: chunks, padded rows, a second turn, drafts taken back, a long prompt.

The file is compared with itself (and a long prompt with the reference), so no route hides behind quantization. In
float32 the routes differ by rounding alone; a file as shipped rounds its activations too, to 8 bits or to float16.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfm2export import contract, measures
from lfm2export.progress import Progress, silent
from lfm2export.runtime import BufferedModel, CopyState, OnnxModel
from lfm2export.spec import ModelSpec
from lfm2export.steps import Logits, Mask, Tokens, next_token_logits, row_lengths
from lfm2export.verify.expected import ExpectedLong
from lfm2export.verify.figures import CheckName, Form, RouteMeasure, Verdict
from lfm2export.verify.prompts import Prompt
from lfm2export.verify.steps import allowed

Caches = tuple[NDArray[Any], ...]

#: Tokens of each padded row's answer.
ANSWER = 4

#: Tokens that the quick form feeds one by one.
FEW = 16

#: What a long prompt may take: bytes of the whole process, of which a session holds about one a parameter of a q4 file;
#: but so many of activations in any case. A token takes so many for each unit of FFN width (measured with 2.6B: 660 kB,
#: of which the arena leaves a part unused). What is longer is fed in parts.
MEMORY, ACTIVATIONS = 11 << 28, 1 << 29
BYTES_PER_WIDTH = 62

#: A long prompt is also fed in chunks of so many tokens, or of half as many as are fed at once.
LONG_CHUNK = 1024


@dataclass
class Worst:
    """The largest differences met on one route. first: what is beyond its limit first; place: where we are."""

    limit_logits: float
    limit_caches: float
    logits: float | None = None
    caches: float | None = None
    cache: str | None = None
    allowed_logits: float = 0.0
    allowed_caches: float = 0.0
    place: str = "at the end"
    first: str | None = None

    def add_logits(self, wanted: NDArray[Any], got: NDArray[Any]) -> None:
        """Logits of any equal shape."""
        found = measures.compare_cache(wanted, got)
        assert found.max_abs is not None
        limit = allowed(self.limit_logits, found.scale)
        self._judge(contract.LOGITS, found.max_abs, limit)
        if self.logits is None or found.max_abs > self.logits:
            self.logits, self.allowed_logits = found.max_abs, limit

    def add_cache(self, name: str, wanted: NDArray[Any], *candidates: NDArray[Any]) -> None:
        """The candidate that is nearest to what was wanted counts: a row's slots may lie in front or under its mask."""
        found = min((measures.compare_cache(wanted, got) for got in candidates), key=lambda m: m.max_abs or 0.0)
        if found.max_abs is None:
            return
        limit = allowed(self.limit_caches, found.scale)
        self._judge(name, found.max_abs, limit)
        if self.caches is None or found.max_abs > self.caches:
            self.caches, self.allowed_caches, self.cache = found.max_abs, limit, name

    def _judge(self, name: str, got: float, limit: float) -> None:
        if not got <= limit and self.first is None:
            self.first = f"{name} is off by {got:.3g}, expected at most {limit:.2g}, {self.place}"


class Routes:
    """All routes of one file in one form; each gives one measure or several."""

    def __init__(
        self, model: OnnxModel, form: Form, limit_logits: float, limit_caches: float, progress: Progress = silent
    ) -> None:
        self.model, self.form = model, form
        self.limits = (limit_logits, limit_caches)
        self.progress, self.stage, self.done, self.total = progress, "", 0, 0
        self.at_once = at_once(model.spec)
        self.names = [cache.present.name for cache in model.contract.caches]

    def chunks(self, tokens: Sequence[int]) -> list[RouteMeasure]:
        """Whole = in chunks = token by token."""
        self._begin(CheckName.CHUNKS, 3 * len(tokens))
        whole, kept = self._fed([tokens])
        sizes: dict[str, list[Sequence[int]]] = {
            "3 chunks": _cut(tokens, 3),
            "token by token": [[token] for token in tokens],
        }
        found = []
        for route, parts in sizes.items():
            worst = Worst(*self.limits)
            logits, caches = self._fed(parts)
            self._caches(worst, kept, caches)
            worst.add_logits(whole, logits)
            found.append(self._measure(CheckName.CHUNKS, route, "all at once", len(tokens), worst))
        return found

    def turns(self, first: Sequence[int], answer: Sequence[int], second: Sequence[int]) -> RouteMeasure:
        """A second turn on the cache that the first one left = the whole conversation at once."""
        tokens = [*first, *answer, *second]
        self._begin(CheckName.TURNS, 2 * len(tokens))
        whole, kept = self._fed([tokens])
        worst = Worst(*self.limits)
        logits, caches = self._fed([first, *([token] for token in answer), second])
        self._caches(worst, kept, caches)
        worst.add_logits(whole, logits)
        return self._measure(CheckName.TURNS, "second turn on a kept cache", "all at once", len(tokens), worst)

    def drafts(self, tokens: Sequence[int]) -> list[RouteMeasure]:
        """Steps of several tokens, of which the end is wrong and taken back = token by token; in both loops."""
        start, width = len(tokens) // 2, self.model.max_drafts + 1
        wrong = [(token + 1) % self.model.spec.vocab_size for token in (*tokens[1:], *tokens[:1])] * 2
        loops: dict[str, Any] = {"caches by value": self.model, "caches in buffers": BufferedModel(self.model)}
        self._begin(CheckName.DRAFTS, (1 + len(loops)) * (start + width * (len(tokens) - start)))
        _, state = self._step(np.array([tokens[:start]], np.int64), self.model.new_state(1))
        alone = {}
        for place in range(start, len(tokens)):
            logits, state = self._step(np.array([[tokens[place]]], np.int64), state)
            alone[place] = (next_token_logits(logits)[0], self.model.read_caches(state))
        found = []
        for name, loop in loops.items():
            worst = Worst(*self.limits)
            _, held = loop.step(np.array([tokens[:start]], np.int64), loop.new_state(1))
            place, step = start, 0
            while place < len(tokens):
                count = min(step % width + 1, len(tokens) - place)
                fed = [*tokens[place : place + count], *wrong[place + count - 1 : place + width - 1]]
                worst.place = f"in step {step}, of which {count} of {width} tokens were kept"
                logits, keep = loop.speculate(np.array([fed], np.int64), held)
                rows, held = logits[0, :count].copy(), keep(count)
                place, step = place + count, step + 1
                for cache, theirs, mine in zip(self.names, alone[place - 1][1], loop.read_caches(held), strict=True):
                    worst.add_cache(cache, theirs, mine if mine.ndim == 3 else mine[:, :, : theirs.shape[2]])
                for row, kept in enumerate(range(place - count, place)):
                    worst.add_logits(alone[kept][0], rows[row])
                self.done += width
                self.progress(self.stage, min(self.done, self.total), self.total, "tokens")
            route = f"drafts taken back, {name}"
            found.append(self._measure(CheckName.DRAFTS, route, "token by token", len(tokens), worst))
        return found

    def padding(self, rows: Sequence[Sequence[int]], quick: bool = False) -> list[RouteMeasure]:
        """Rows of unequal length, padded left, right, and on either side by turns = the same rows alone."""
        count = 2 if quick else ANSWER
        width = max(map(len, rows))
        self._begin(CheckName.PADDING, sum(len(row) + count + 3 * (width + count) for row in rows))
        answers = np.array([[(7 * step + 3 * row + 5) % self.model.spec.vocab_size for step in range(count)]
                            for row in range(len(rows))])  # fmt: skip
        alone = [self._steps([list(row)], [np.ones((1, len(row)), np.int64)], answers[[index]])
                 for index, row in enumerate(rows)]  # fmt: skip
        found = []
        for route, sides in (("left", "L"), ("right", "R"), ("mixed", "LR")):
            ids, mask = padded(rows, sides)
            worst = Worst(*self.limits)
            for step, (logits, caches, held) in enumerate(self._steps(ids.tolist(), [mask], answers)):
                for row in range(len(rows)):
                    wanted, own, _ = alone[row][step]
                    worst.place = f"in row {row} ({len(rows[row])} tokens) at step {step}"
                    length = int(held[row].sum())
                    for name, theirs, mine in zip(self.names, own, caches, strict=True):
                        if mine.ndim == 3:
                            worst.add_cache(name, theirs[0], mine[row])
                        else:
                            worst.add_cache(name, theirs[0], mine[row, :, :length], mine[row][:, held[row] == 1])
                    worst.add_logits(wanted[0], logits[row])
            tokens = sum(len(row) + count for row in rows)
            found.append(self._measure(CheckName.PADDING, f"{route} padding", "each row alone", tokens, worst))
        return found

    def long_reference(self, expected: ExpectedLong) -> RouteMeasure:
        """A long prompt at once = PyTorch."""
        self._begin(CheckName.LONG, len(expected.tokens))
        logits, caches = self._fed(_cut_at(expected.tokens, self.at_once))
        worst = Worst(*self.limits)
        self._caches(worst, expected.trace.caches(len(expected.tokens)), caches)
        worst.add_logits(expected.logits, logits)
        count = len(expected.tokens)
        return self._measure(CheckName.LONG, f"{count:,} tokens {self._whole(count)}", "PyTorch", count, worst)

    def long_chunks(self, tokens: Sequence[int]) -> RouteMeasure:
        """A long prompt in chunks, and its last 8 tokens one by one = at once."""
        count = len(tokens)
        self._begin(CheckName.LONG, 2 * count)
        whole, kept = self._fed(_cut_at(tokens, self.at_once))
        worst = Worst(*self.limits)
        size = min(LONG_CHUNK, self.at_once // 2)
        logits, caches = self._fed([*_cut_at(tokens[:-8], size), *([token] for token in tokens[-8:])])
        self._caches(worst, kept, caches)
        worst.add_logits(whole, logits)
        route = f"{count:,} tokens in chunks of {size:,}"
        return self._measure(CheckName.LONG, route, f"all {self._whole(count)}", count, worst)

    def _begin(self, check: CheckName, total: int) -> None:
        form = " in float32" if self.form is Form.EXACT else ""
        self.stage, self.done, self.total = f"{check.value}{form}", 0, total
        self.progress(self.stage, 0, total, "tokens")

    def _step(self, tokens: Tokens, state: CopyState, mask: Mask | None = None) -> tuple[Logits, CopyState]:
        logits, state = self.model.step(tokens, state, mask)
        self.done += tokens.size
        self.progress(self.stage, self.done, self.total, "tokens")
        return logits, state

    def _whole(self, count: int) -> str:
        return "at once" if count <= self.at_once else f"in parts of {self.at_once:,}"

    def _fed(self, parts: Iterable[Sequence[int]]) -> tuple[NDArray[Any], Caches]:
        """Logits [V] after the last part, and the caches."""
        state = self.model.new_state(1)
        for part in parts:
            if len(part):
                logits, state = self._step(np.array([part], np.int64), state)
        return next_token_logits(logits)[0], self.model.read_caches(state)

    def _steps(
        self, ids: list[list[int]], masks: list[Mask], answers: NDArray[np.int64]
    ) -> list[tuple[Logits, Caches, Mask]]:
        """(logits [B, V], caches, mask [B, T]) after the prompt and after each answer token."""
        state = self.model.new_state(len(ids))
        logits, state = self._step(np.array(ids, np.int64), state, masks[0])
        found = [(next_token_logits(logits, masks[0]), self.model.read_caches(state), state.mask)]
        for step in range(answers.shape[1]):
            logits, state = self._step(answers[:, step : step + 1], state)
            found.append((next_token_logits(logits), self.model.read_caches(state), state.mask))
        return found

    def _caches(self, worst: Worst, wanted: Caches, got: Caches) -> None:
        for name, theirs, mine in zip(self.names, wanted, got, strict=True):
            worst.add_cache(name, theirs, mine)

    def _measure(self, check: CheckName, route: str, against: str, tokens: int, worst: Worst) -> RouteMeasure:
        return RouteMeasure(
            check=check,
            form=self.form,
            route=route,
            against=against,
            tokens=tokens,
            max_abs_logits=worst.logits,
            max_abs_caches=worst.caches,
            worst_cache=worst.cache,
            limit_logits=worst.allowed_logits,
            limit_caches=worst.allowed_caches,
            first=worst.first,
            verdict=Verdict.FAILED if worst.first is not None else Verdict.PASSED,
        )


def at_once(spec: ModelSpec) -> int:
    """Tokens of a long prompt that are fed at once: a power of two."""
    room = max(ACTIVATIONS, MEMORY - spec.num_parameters)
    return 1 << int(math.log2(room / (BYTES_PER_WIDTH * spec.intermediate_size)))


def padded(rows: Sequence[Sequence[int]], sides: str) -> tuple[NDArray[np.int64], Mask]:
    """(ids, mask), both [B, S]; `sides` are taken by the rows in turn: L pads on the left, R on the right."""
    width = max(map(len, rows))
    ids, mask = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.int64)
    for row, tokens in enumerate(rows):
        place = slice(0, len(tokens)) if sides[row % len(sides)] == "R" else slice(width - len(tokens), width)
        ids[row, place], mask[row, place] = tokens, 1
    assert (row_lengths(mask) > 0).all()
    return ids, mask


def uneven_rows(prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
    """Three rows of different lengths made of the prompts."""
    longest = sorted((prompt.tokens for prompt in prompts), key=len)[-1]
    wanted = (max(1, len(longest) // 4), len(longest), max(1, 2 * len(longest) // 3))
    sources = [prompts[index % len(prompts)].tokens for index in range(3)]
    return [(*longest, *source)[-size:] for size, source in zip(wanted, sources, strict=True)]


def _cut_at(tokens: Sequence[int], size: int) -> list[Sequence[int]]:
    """Parts of `size` tokens, the last perhaps shorter."""
    return [tokens[start : start + size] for start in range(0, len(tokens), size)]


def _cut(tokens: Sequence[int], count: int) -> list[Sequence[int]]:
    """`count` parts of unequal length."""
    cuts = [round(len(tokens) * (index / count) ** 1.5) for index in range(count + 1)]
    return [tokens[start:stop] for start, stop in pairwise(cuts)]
