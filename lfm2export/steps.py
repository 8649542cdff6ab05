"""What one step may be, whoever computes it: the checks and integer inputs that runtime and reference share.

Letters: B batch, S new tokens, P past, T = P + S, V vocab.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfm2export import contract
from lfm2export.errors import StepError
from lfm2export.spec import ModelSpec

Tokens = NDArray[np.int64]
Mask = NDArray[np.int64]
Logits = NDArray[np.float32]


def row_lengths(mask: Mask) -> Mask:
    """Valid tokens per row of `mask` [B, T], as [B]; also the next position of each row."""
    lengths: Mask = mask.sum(axis=1)
    return lengths


def step_inputs(
    spec: ModelSpec, tokens: Tokens, past_mask: Mask, attention_mask: Mask | None
) -> tuple[dict[str, NDArray[Any]], Mask]:
    """Check one step and make its three integer inputs: (feeds, mask [B, T] after the step).

    Positions count the valid tokens of each row, so a pad has no position of its own (it is given 0, and token
    0: a pad may be any number in `tokens`).

    Raises:
        StepError: an empty row, a pad after the first step, several tokens with a past and several rows, a token
            outside the vocabulary, or more tokens than max_position_embeddings.
    """
    tokens = np.ascontiguousarray(tokens, np.int64)
    if tokens.ndim != 2 or tokens.shape[0] != past_mask.shape[0]:
        raise StepError(f"tokens have shape {tokens.shape}, expected [{past_mask.shape[0]}, S]: one row per sequence")
    batch, new = tokens.shape
    if new == 0:
        raise StepError("a step got no tokens, expected at least one per row; give a prompt that is not empty")
    has_past = past_mask.shape[1] > 0
    if has_past and new > 1 and batch > 1:
        raise StepError(
            f"{new} tokens for each of {batch} rows after the first step: GroupQueryAttention takes several new tokens "
            "with a past for one row only; feed them one at a time, or each row alone"
        )
    past = past_mask.sum(axis=1, keepdims=True)
    if attention_mask is None:  # every step of a generation: what a mask asks for would double the loop's own time
        mask = np.ones_like(tokens)
        used = tokens
        positions = past + np.arange(new)
    else:
        mask = _checked_mask(tokens, attention_mask, has_past=has_past)
        used = tokens[mask == 1]
        tokens = np.where(mask == 1, tokens, 0)
        positions = np.where(mask == 1, past + np.cumsum(mask, axis=1) - 1, 0)
    smallest, largest = int(used.min()), int(used.max())
    if smallest < 0 or largest >= spec.vocab_size:
        worst = smallest if smallest < 0 else largest
        raise StepError(f"token {worst} is outside the vocabulary of {spec.vocab_size}; use this model's own tokenizer")
    longest = int(positions.max()) + 1
    if longest > spec.max_position_embeddings:
        raise StepError(
            f"{longest} tokens exceed the context length {spec.max_position_embeddings}; shorten the prompt or answer"
        )
    whole = np.concatenate([past_mask, mask], axis=1)
    feeds = {contract.INPUT_IDS: tokens, contract.ATTENTION_MASK: whole, contract.POSITION_IDS: positions}
    return feeds, whole


def _checked_mask(tokens: Tokens, attention_mask: Mask, *, has_past: bool) -> Mask:
    """The mask [B, S] of a step's new tokens.

    Raises:
        StepError: another shape, other numbers than 0 and 1, a pad after the first step, or a row without a token.
    """
    mask = np.ascontiguousarray(attention_mask, np.int64)
    if mask.shape != tokens.shape or not np.isin(mask, (0, 1)).all():
        raise StepError(f"attention_mask has shape {mask.shape}, expected zeros and ones of shape {tokens.shape}")
    if has_past and not mask.all():
        raise StepError("a pad was given after the first step; padding is exact only in the first step of a state")
    if not mask.any(axis=1).all():
        raise StepError(f"row {int(np.argmin(mask.any(axis=1)))} is all padding; give each row at least one token")
    return mask


def next_token_logits(logits: Logits, attention_mask: Mask | None = None) -> Logits:
    """The logits [B, V] of each row's next token, from [B, 1, V] or from all positions [B, S, V].

    With all positions the last valid one counts: the last column unless the step was padded on the right.
    """
    rows, width = logits.shape[:2]
    last = np.full(rows, width - 1)
    if attention_mask is not None and width > 1:
        last -= np.argmax(attention_mask[:, ::-1], axis=1)
    chosen: Logits = logits[np.arange(rows), last]
    return chosen
