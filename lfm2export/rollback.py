"""Taking tokens back: a step of a token and drafts of those after it, of which perhaps only the first ones stay.

A conv state [B, H, L] is the last L columns of B * x. After a step of S <= L tokens the states in between are there:

    past    c1 c2 c3                       after 1 token     c2 c3 d1
    present          d1 d2 d3  (S = 3)     after 2 tokens       c3 d1 d2

Keys and values are there by length: what lies behind a row's own length is never read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lfm2export.errors import StepError
from lfm2export.steps import Tokens


def conv_state_after(past: NDArray[Any], present: NDArray[Any], width: int, count: int) -> NDArray[Any]:
    """The state [B, H, L] after the first `count` of `width` <= L tokens, from those before and after all of them."""
    length = past.shape[2]
    columns = np.concatenate([past, present[:, :, length - width :]], axis=2)  # [B, H, L + width]
    state: NDArray[Any] = columns[:, :, count : count + length]
    return state


def from_end(count: int) -> NDArray[np.int64]:
    """The last `count` tokens in their order, as `logits_from_end` names them."""
    return np.arange(count - 1, -1, -1)


def check_speculation(tokens: Tokens, max_drafts: int) -> None:
    """Whether a step of `tokens` [1, S] can be taken back in part.

    Raises:
        StepError: several rows, or more tokens than a conv state has columns.
    """
    rows, width = tokens.shape
    if rows != 1:
        raise StepError(f"a step with drafts got {rows} rows, expected 1; feed several rows a token at a time")
    if not 1 <= width <= max_drafts + 1:
        raise StepError(f"a step with drafts got {width} tokens, expected 1 to {max_drafts + 1} for this file")
