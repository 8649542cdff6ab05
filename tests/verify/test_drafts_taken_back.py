"""The check of tokens fed on trial: it passes on what is right, and each way of taking back wrongly is caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfm2export import runtime
from lfm2export.contract import LogitsMode
from lfm2export.rollback import conv_state_after, from_end
from lfm2export.runtime import BufferedModel, OnnxModel
from lfm2export.verify.figures import Form, RouteMeasure, Verdict
from lfm2export.verify.routes import Routes
from lfm2export.verify.tolerances import tolerances

TOKENS = [3, 17, 5, 11, 2, 8, 9, 21, 14, 6, 30, 19]


def measured(folder: Path, dtype: str) -> list[RouteMeasure]:
    model = OnnxModel(folder, dtype, threads=1)
    limits = tolerances(dtype, model.spec.num_hidden_layers)
    return Routes(model, Form.SHIPPED, limits.exact_logits, limits.exact_caches).drafts(TOKENS)


def a_column_short(past: Any, present: Any, width: int, count: int) -> Any:
    return conv_state_after(past, present, width, count - 1)


def a_column_too_far(past: Any, present: Any, width: int, count: int) -> Any:
    return conv_state_after(past, present, width, min(count + 1, width))


def a_token_too_long(speculate: Callable[..., Any]) -> Callable[..., Any]:
    """Keys and values keep one wrong token more than the conv states do."""

    def faulty(self: Any, tokens: Any, state: Any) -> Any:
        logits, keep = speculate(self, tokens, state)

        def more(count: int) -> Any:
            longer = keep(count)
            if isinstance(longer, runtime.BufferedState):
                mask, current = longer.committed
                longer.committed = (
                    np.pad(mask, ((0, 0), (0, int(count < tokens.shape[1]))), constant_values=1),
                    current,
                )
                return longer
            other = keep(min(count + 1, tokens.shape[1]))
            caches = tuple(a if a.ndim == 3 else b for a, b in zip(longer.caches, other.caches, strict=True))
            return replace(other, caches=caches)

        return logits, more

    return faulty


@pytest.mark.parametrize("dtype", ["fp32", "q8"])
def test_what_is_right_passes(tiny_artifact: Callable[[LogitsMode], Path], dtype: str) -> None:
    for logits in ("last", "all"):
        found = measured(tiny_artifact(logits), dtype)  # type: ignore[arg-type]
        assert [route.verdict for route in found] == [Verdict.PASSED] * 2
        assert all(route.max_abs_logits is not None and route.max_abs_caches is not None for route in found)


@pytest.mark.parametrize(
    ("name", "fault", "tensor"),
    [
        ("conv_state_after", a_column_short, "present_conv.0"),
        ("conv_state_after", a_column_too_far, "present_conv.0"),
        ("from_end", lambda count: from_end(count)[::-1].copy(), "logits"),
        ("from_end", lambda count: np.minimum(from_end(count) + 1, count - 1), "logits"),
    ],
)
def test_a_state_rebuilt_wrongly_is_caught(
    tiny_artifact: Callable[[LogitsMode], Path],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    fault: Callable[..., Any],
    tensor: str,
) -> None:
    monkeypatch.setattr(runtime, name, fault)
    for route in measured(tiny_artifact("last"), "fp32"):
        assert route.verdict is Verdict.FAILED and route.first is not None and route.first.startswith(tensor)
        assert "in step 0, of which 1 of 3 tokens were kept" in route.first or tensor == "logits"


def test_caches_that_keep_a_token_too_many_are_caught(
    tiny_artifact: Callable[[LogitsMode], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (OnnxModel, BufferedModel):
        monkeypatch.setattr(kind, "speculate", a_token_too_long(kind.speculate))
    for route in measured(tiny_artifact("last"), "fp32"):
        assert route.verdict is Verdict.FAILED and route.first is not None
        assert route.first.startswith("present") and ("in step 0" in route.first or "in step 1" in route.first)
