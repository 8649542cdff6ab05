"""Graphs that look like a pattern and compute something else: refused, whoever made them."""

from __future__ import annotations

import pytest

import test_attention
import test_last_token
import test_rms_norm
import test_rotary
import test_short_conv
from graphs import SPEC, Checkpoint, edited, evaluate, fire, parse, weight, with_spec
from lfm2export.passes import attention, last_token, rms_norm, rotary, short_conv
from lfm2export.passes.block_quantize import table_pass
from lfm2export.recipes import Formats
from lfm2export.weights import BlockFormat
from test_block_quantize import TABLE, table_feeds, tabled


@pytest.mark.parametrize(("bits", "size", "columns"), [(4, 32, 80), (8, 32, 80), (8, 128, 64)])
def test_gather_block_quantized_cuts_a_last_block_that_is_not_full(bits: int, size: int, columns: int) -> None:
    block, model = BlockFormat(bits, size, symmetric=True), tabled(columns)  # type: ignore[arg-type]
    firing = fire(
        model, table_pass(Formats(None, block), "gather_block_quantized", half=False), with_spec(hidden_size=columns)
    )
    if firing.count == 2:
        source = Checkpoint({TABLE: weight(TABLE, (40, columns))})
        assert evaluate(model, table_feeds(columns), source)["embedded"].shape == (2, 3, columns)


def test_last_token_refuses_a_gather_of_the_sum() -> None:
    model = parse(edited(test_last_token.PLAIN, "(final, index)", "(unread, index)"), test_last_token.WEIGHTS)
    assert last_token.fuse(model, SPEC).count == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Softmax <axis = -1>", "Softmax <axis = 2>"),
        ("Transpose <perm = [0, 1, 3, 2]>", "Transpose <perm = [0, 1, 2, 3]>"),
        ("float_zero, float_min)", "float_min, float_zero)"),
        ("by_token = Transpose <perm = [0, 2, 1, 3]>", "by_token = Transpose <perm = [0, 2, 3, 1]>"),
        ("LessOrEqual (slot_view, bound)", "LessOrEqual (count_view, bound)"),
    ],
)
def test_attention_refuses(old: str, new: str) -> None:
    assert attention.fuse(parse(edited(test_attention.TEXT, old, new)), SPEC).count == 0


def test_rotary_refuses_another_axis() -> None:
    text = edited(test_rotary.TEXT, "three, one)", "two, one)").replace(
        "Concat <axis = -1> (q_n", "Concat <axis = 2> (q_n"
    )
    text = text.replace("Concat <axis = -1> (k_n", "Concat <axis = 2> (k_n")
    assert rotary.fuse(parse(text), SPEC).count == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Bx = Mul (B, x)", "Bx = Mul (B, B)"),
        ("Bx = Mul (B, x)", "Bx = Mul (C, x)"),
        ("y = Slice (causal, before, end, two, one)", "y = Slice (causal, zero, length, two, one)"),
        ("causal = Slice (convolved, zero, stop", "causal = Slice (convolved, one, stop"),
        ("pads = [2, 2], kernel", "pads = [2, 2], dilations = [2], kernel"),
        ("out = Transpose <perm = [0, 2, 1]>", "out = Transpose <perm = [0, 1, 2]>"),
        ("transposed = Transpose <perm = [0, 2, 1]>", "transposed = Transpose <perm = [0, 1, 2]>"),
        ("pads = [2, 2], ", ""),  # KeyError
    ],
)
def test_short_conv_refuses(old: str, new: str) -> None:
    assert short_conv.fuse(parse(edited(test_short_conv.TEXT, old, new), ["kernel"]), SPEC).count == 0


def test_rms_norm_refuses_a_square_of_the_normalized() -> None:
    text = edited(test_rms_norm.TEXT, "middle = Mul (first, normalized)", "middle = Mul (normalized, normalized)")
    assert rms_norm.fuse(parse(text, test_rms_norm.WEIGHTS), SPEC).count == 1  # StopIteration
