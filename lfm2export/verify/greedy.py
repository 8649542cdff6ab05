"""Free-running greedy generation of a file beside the reference's.

The reference is asked once, for prompt and answer together: as long as every token so far is the reference's own
choice, the prefix is the one that it would have written itself, so the first token that is not its choice is exactly
where `model.generate` parts from the file. At that place the reference's logits tell a near tie from a fault.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lfm2export.generation.loop import generate
from lfm2export.generation.text import ChatTokenizer
from lfm2export.progress import Progress, silent
from lfm2export.reference.run import Run
from lfm2export.runtime import OnnxModel, fastest
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
    pairs = list(zip((entry.prompt for entry in expected), given, strict=True))
    traces = reference.run([Run.prefill((*p.tokens, *a), caches_from=None) for p, a in pairs], progress)
    found = []
    for number, ((prompt, answer), trace) in enumerate(zip(pairs, traces, strict=True)):
        logits = reference.logits(trace.hidden[len(prompt.tokens) - 1 : -1])
        choices = logits.argmax(axis=-1)
        parted = np.flatnonzero(choices != np.array(answer))
        difference = None
        if parted.size:
            step = int(parted[0])
            theirs = expected[number].answer[step : step + AROUND] if own_answers else ()
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


def _decoded(tokenizer: ChatTokenizer | None, tokens: Sequence[int]) -> str | None:
    return tokenizer.decode(tokens) if tokenizer is not None else None
