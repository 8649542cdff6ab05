"""The generation loop of the model card as a function: prefill, then step by step until something stops it.

A step feeds the token chosen last, and perhaps drafts of those after it. Of each position's logits a token is chosen
just as without drafts, from the same scores and in the same order; as long as it is the draft, the next position's
logits are those that feeding it would have given. So whatever is proposed, each token has the distribution that it has
without, and with the same seed is the same token, but where two are as good as equal: a step of several tokens rounds
otherwise than one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lfm2export.errors import PromptError
from lfm2export.generation.drafts import NgramDrafts
from lfm2export.generation.sampling import Sampler
from lfm2export.spec import ModelSpec
from lfm2export.steps import Logits, Mask, Tokens

S = TypeVar("S", bound="State")

#: A prompt is fed in pieces of this many tokens. Attention takes S x T numbers a head: with 4,096 tokens of 350M whole
#: the process peaks at 1,063 MB, in pieces at 551 MB, at the same speed (measured, onnxruntime 1.32).
PREFILL_TOKENS = 512


class State(Protocol):
    """What a model carries from step to step; `lengths` [B] are the tokens it holds."""

    @property
    def lengths(self) -> NDArray[np.int64]: ...


class Model(Protocol[S]):
    """Anything that steps: the copying loop, the buffered one, or PyTorch."""

    @property
    def spec(self) -> ModelSpec: ...

    def new_state(self, batch: int = 1) -> S: ...

    def step(self, tokens: Tokens, state: S, attention_mask: Mask | None = None) -> tuple[Logits, S]: ...


@runtime_checkable
class SpeculativeModel(Model[S], Protocol[S]):
    """One that can take back the last tokens of a step; `max_drafts` at most, 0 where its file does not allow it."""

    @property
    def max_drafts(self) -> int: ...

    def speculate(self, tokens: Tokens, state: S) -> tuple[Logits, Callable[[int], S]]: ...


class Stop(StrEnum):
    """Why a generation ended."""

    EOS = "eos"
    LENGTH = "length"
    CONTEXT = "context"
    DEFAULT_LENGTH = "model_max_length"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Generated(Generic[S]):
    """What was generated, and how long it took in seconds (None where nothing was measured).

    tokens: the answer; it ends with the stop token when `stop` is EOS. state: the model's state after the last step,
    which holds the prompt and every token of the answer that was fed back. prefilled: prompt tokens fed in this call.
    drafted, accepted: drafts fed, and those that came true.
    """

    tokens: list[int]
    stop: Stop
    state: S
    prefilled: int
    prefill_seconds: float | None
    decode_seconds: float | None
    drafted: int = 0
    accepted: int = 0

    @property
    def prefill_rate(self) -> float | None:
        """Prompt tokens a second."""
        return self.prefilled / self.prefill_seconds if self.prefill_seconds else None

    @property
    def decode_rate(self) -> float | None:
        """Tokens a second after the first, which the prefill made."""
        steps = len(self.tokens) - 1
        return steps / self.decode_seconds if self.decode_seconds and steps > 0 else None


def generate(
    model: Model[S],
    tokens: Sequence[int],
    *,
    max_new_tokens: int,
    sampler: Sampler | None = None,
    eos_ids: Collection[int] = (),
    on_token: Callable[[int], None] | None = None,
    state: S | None = None,
    length: int | None = None,
    draft: bool = False,
) -> Generated[S]:
    """Continue the prompt `tokens` by at most `max_new_tokens`.

    Args:
        sampler: how to choose; greedy by default.
        eos_ids: tokens that end the answer.
        on_token: called with each token as it is chosen, the stop token too.
        state: a state that already holds the first tokens of the prompt; only the rest is fed.
        length: tokens of prompt and answer together at which the answer ends; a prompt as long as that is answered up
            to the context's end.
        draft: propose tokens from prompt and answer, where the model can take them back.

    An interruption (Ctrl-C) ends the loop and returns what there is; it is not raised.

    Raises:
        PromptError: an empty prompt, one that the state holds completely, or one that leaves no room for an answer.
        StepError: as the model's own step.
    """
    held = int(state.lengths[0]) if state is not None else 0
    limit = model.spec.max_position_embeddings
    if len(tokens) <= held:
        raise PromptError(
            f"the prompt has {len(tokens)} tokens and {held} of them are done; give at least one more"
            if held
            else "the prompt has no tokens; give some text"
        )
    if len(tokens) > limit:
        raise PromptError(
            f"the prompt has {len(tokens)} tokens, expected at most {limit} (the context length); shorten it"
        )
    if max_new_tokens < 1:
        raise PromptError(f"max_new_tokens is {max_new_tokens}, expected 1 or more")
    choose = sampler if sampler is not None else Sampler()
    current = state if state is not None else model.new_state(1)
    speculative = model if draft and isinstance(model, SpeculativeModel) and model.max_drafts else None
    proposer = NgramDrafts(tokens, speculative.max_drafts) if speculative is not None else None
    longest = _longest_answer(len(tokens), max_new_tokens, limit, length)
    answer: list[int] = []
    drafts: list[int] = []
    keep: Callable[[int], S] | None = None
    stop, prefill_end, last = None, None, None
    begin = time.perf_counter()
    try:
        for start in range(held, len(tokens), PREFILL_TOKENS):
            logits, current = model.step(np.array([tokens[start : start + PREFILL_TOKENS]], np.int64), current)
        prefill_end = time.perf_counter()
        rows = logits[0, -1:]
        while True:
            for right, row in enumerate(rows):  # `right` drafts came true so far
                token = choose(row, [*tokens, *answer])
                answer.append(token)
                last = time.perf_counter()
                if proposer is not None:
                    proposer.push(token)
                if on_token is not None:
                    on_token(token)
                stop = _stop(token, len(answer), len(tokens), eos_ids, max_new_tokens, limit, length)
                if stop is not None or drafts[right : right + 1] != [token]:
                    break
            if keep is not None:
                current = keep(right + 1)
            if proposer is not None:
                proposer.settle(right)
            if stop is not None:
                break
            drafts = proposer.propose(longest - len(answer) - 1) if proposer is not None else []
            fed = np.array([[token, *drafts]], np.int64)
            if drafts and speculative is not None:
                logits, keep = speculative.speculate(fed, current)
                rows = logits[0]
            else:
                logits, current = model.step(fed, current)
                rows, keep = logits[0, -1:], None
    except KeyboardInterrupt:
        stop = Stop.INTERRUPTED
    assert stop is not None
    return Generated(
        tokens=answer,
        stop=stop,
        state=current,
        prefilled=len(tokens) - held,
        prefill_seconds=prefill_end - begin if prefill_end is not None else None,
        decode_seconds=last - prefill_end if last is not None and prefill_end is not None else None,
        drafted=proposer.drafted if proposer is not None else 0,
        accepted=proposer.accepted if proposer is not None else 0,
    )


def _stop(
    token: int, count: int, prompt: int, eos_ids: Collection[int], max_new: int, limit: int, length: int | None
) -> Stop | None:
    """Why the answer ends with `token`, the `count`-th after `prompt` tokens; None: it does not."""
    if token in eos_ids:
        return Stop.EOS
    if count == max_new:
        return Stop.LENGTH
    if prompt + count > limit:
        return Stop.CONTEXT
    if length is not None and prompt + count == length:
        return Stop.DEFAULT_LENGTH
    return None


def _longest_answer(prompt: int, max_new: int, limit: int, length: int | None) -> int:
    """Tokens after which :func:`_stop` ends any answer to `prompt` tokens."""
    most = min(max_new, limit + 1 - prompt)
    return min(most, length - prompt) if length is not None and length > prompt else most
