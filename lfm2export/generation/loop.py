"""The generation loop of the model card as a function: prefill, then one token a step until something stops it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from lfm2export.errors import PromptError
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
    """

    tokens: list[int]
    stop: Stop
    state: S
    prefilled: int
    prefill_seconds: float | None
    decode_seconds: float | None

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
) -> Generated[S]:
    """Continue the prompt `tokens` by at most `max_new_tokens`.

    Args:
        sampler: how to choose; greedy by default.
        eos_ids: tokens that end the answer.
        on_token: called with each token as it is chosen, the stop token too.
        state: a state that already holds the first tokens of the prompt; only the rest is fed.
        length: tokens of prompt and answer together at which the answer ends; a prompt as long as that is answered up
            to the context's end.

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
    answer: list[int] = []
    stop, prefill_end, last = Stop.LENGTH, None, None
    begin = time.perf_counter()
    try:
        for start in range(held, len(tokens), PREFILL_TOKENS):
            logits, current = model.step(np.array([tokens[start : start + PREFILL_TOKENS]], np.int64), current)
        prefill_end = time.perf_counter()
        while True:
            token = choose(logits[0, -1], [*tokens, *answer])
            answer.append(token)
            last = time.perf_counter()
            if on_token is not None:
                on_token(token)
            if token in eos_ids:
                stop = Stop.EOS
                break
            if len(answer) == max_new_tokens:
                break
            if len(tokens) + len(answer) > limit:
                stop = Stop.CONTEXT
                break
            if length is not None and len(tokens) + len(answer) == length:
                stop = Stop.DEFAULT_LENGTH
                break
            logits, current = model.step(np.array([[token]], np.int64), current)
    except KeyboardInterrupt:
        stop = Stop.INTERRUPTED
    return Generated(
        tokens=answer,
        stop=stop,
        state=current,
        prefilled=len(tokens) - held,
        prefill_seconds=prefill_end - begin if prefill_end is not None else None,
        decode_seconds=last - prefill_end if last is not None and prefill_end is not None else None,
    )
