"""Free-running greedy generation of a file beside the reference's.

The reference is asked once, for prompt and answer together, where teacher forcing has not told it already: as long as
every token so far is the reference's own choice, the prefix is the one that it would have written itself, so the first
token that is not its choice is exactly where `model.generate` parts from the file. At that place the reference's logits
tell a near tie from a fault.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lfm2export.generation.loop import generate
from lfm2export.progress import Progress, silent
from lfm2export.reference.run import Run
from lfm2export.runtime import OnnxModel, fastest
from lfm2export.steps import Logits
from lfm2export.text.tokenizer import ChatTokenizer
from lfm2export.verify.expected import Expected
from lfm2export.verify.figures import Difference, GreedyMeasure
from lfm2export.verify.prompts import Prompt

if TYPE_CHECKING:
    from lfm2export.verify.expected import Reference

#: Tokens shown on either side of a difference.
AROUND = 8


def greedy_answers(
    model: OnnxModel, prompts: Sequence[Prompt], count: int, eos_ids: Collection[int], progress: Progress = silent
) -> list[tuple[int, ...]]:
    """`count` tokens of each prompt by the file alone, fewer where a stop token comes first."""
    loop: Any = fastest(model)  # either loop takes the states that it made
    found = []
    for done, prompt in enumerate(prompts):
        progress("greedy", done, len(prompts), "prompts")
        answer = generate(loop, prompt.tokens, max_new_tokens=count, eos_ids=eos_ids)
        found.append(tuple(answer.tokens))
    progress("greedy", len(prompts), len(prompts), "prompts")
    return found


def measure_greedy(
    reference: Reference,
    expected: Sequence[Expected],
    given: Sequence[tuple[int, ...]],
    near_tie: float,
    tokenizer: ChatTokenizer | None,
    own_answers: bool,
    progress: Progress = silent,
) -> tuple[GreedyMeasure, ...]:
    """Where the answers `given` part from the reference's.

    own_answers: the answers in `expected` are the reference's own, to be shown beside a difference.
    """
    rows = [_known(entry, answer) for entry, answer in zip(expected, given, strict=True)]
    short = [number for number, row in enumerate(rows) if row is None]
    runs = [Run.prefill((*expected[number].prompt.tokens, *given[number]), caches_from=None) for number in short]
    for number, trace in zip(short, reference.run(runs, progress) if runs else [], strict=True):
        rows[number] = reference.logits(trace.hidden[len(expected[number].prompt.tokens) - 1 : -1])
    found = []
    for number, (entry, answer, logits) in enumerate(zip(expected, given, rows, strict=True)):
        assert logits is not None
        prompt = entry.prompt
        choices = logits.argmax(axis=-1)
        parted = np.flatnonzero(choices != np.array(answer[: len(choices)]))
        difference = None
        if parted.size:
            step = int(parted[0])
            theirs = entry.answer[step : step + AROUND] if own_answers else ()
            row = logits[step]
            second, best = np.sort(row)[-2:]
            gap = float(best - row[answer[step]])
            difference = Difference(
                step=step,
                our_token=answer[step],
                reference_token=int(choices[step]),
                margin=float(best - second),
                gap=gap,
                near_tie=gap <= near_tie,
                limit=near_tie,
                before=_decoded(tokenizer, (*prompt.tokens, *answer[:step])[-2 * AROUND :]),
                ours=_decoded(tokenizer, answer[step : step + AROUND]),
                theirs=_decoded(tokenizer, theirs or (int(choices[step]),)),
            )
        equal = difference.step if difference is not None else len(answer)
        found.append(GreedyMeasure(number, answer, equal, _decoded(tokenizer, answer), difference))
    return tuple(found)


def _known(entry: Expected, answer: Sequence[int]) -> Logits | None:
    """The reference's logits [n, V] at the answer's tokens, from what teacher forcing gave, where that tells it all.

    It does up to the first token that was not fed, which is enough if the reference parts from the answer by then.
    """
    same = next((i for i, (a, b) in enumerate(zip(answer, entry.answer, strict=False)) if a != b), len(entry.answer))
    logits = entry.logits[: min(same + 1, len(answer))]
    parted = (logits.argmax(axis=-1) != np.array(answer[: len(logits)])).any()
    return logits if parted or len(logits) == len(answer) else None


def _decoded(tokenizer: ChatTokenizer | None, tokens: Sequence[int]) -> str | None:
    return tokenizer.decode(tokens) if tokenizer is not None else None
