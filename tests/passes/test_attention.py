from __future__ import annotations

import numpy as np
import pytest

from graphs import SPEC, assert_same_numbers, edited, evaluate, fire, numbers, operators, parse, sources, with_spec
from lfm2export.passes import attention
from lfm2export.spec import CONV, FULL_ATTENTION

#: One layer of attention around its cache, as traced; N 4, K 2, D 8. The mask is made of counts, as the trace makes it.
TEXT = """
attend (int64[B, S] input_ids, int64[B, T] attention_mask, float[B, 4, S, 8] query, float[B, 2, S, 8] key,
        float[B, 2, S, 8] value, float[B, 2, P, 8] past_key, float[B, 2, P, 8] past_value)
    => (float[B, S, 32] out, float[B, 2, T, 8] present_key, float[B, 2, T, 8] present_value)
{
    zero = Constant <value_int = 0> ()
    one_scalar = Constant <value_int = 1> ()
    one = Constant <value_ints = [1]> ()
    two = Constant <value_ints = [2]> ()
    three = Constant <value_ints = [3]> ()
    minus_one = Constant <value_ints = [-1]> ()
    end = Constant <value_ints = [9223372036854775807]> ()
    float_zero = Constant <value_float = 0.0> ()
    float_min = Constant <value_float = -3.0e38> ()
    scale = Constant <value_float = 0.4> ()
    each_row = Constant <value_ints = [-1, 1, 1, 1]> ()
    each_token = Constant <value_ints = [1, 1, -1, 1]> ()
    each_slot = Constant <value_ints = [1, 1, 1, -1]> ()
    repeats = Constant <value_ints = [1, 1, 2, 1, 1]> ()
    by_head = Constant <value_ints = [0, 4, -1, 8]> ()
    flat = Constant <value_ints = [0, 0, 32]> ()
    like_new = Constant <value_ints = [1, 2, 1, 8]> ()
    length_1 = Shape <start = 1, end = 2> (input_ids)
    length = Squeeze (length_1)
    before = Neg (length_1)
    new_mask = Slice (attention_mask, before, end, one, one)
    new_count = ReduceSum <keepdims = 1> (new_mask, one)
    all_count = ReduceSum <keepdims = 1> (attention_mask, one)
    past_count = Sub (all_count, new_count)
    past_length_1 = Shape <start = 2, end = 3> (past_key)
    past_length = Squeeze (past_length_1)
    total = Add (past_length, length)
    steps = Range (zero, length, one_scalar)
    places = Range (zero, total, one_scalar)
    from_past = Sub (places, past_count)
    last_step = Sub (length, one_scalar)
    new_place = Clip (from_past, , last_step)
    behind = Add (new_place, past_length)
    is_past = Less (places, past_count)
    slots = Where (is_past, places, behind)
    slot_view = Reshape (places, each_slot)
    count_view = Reshape (past_count, each_row)
    step_view = Reshape (steps, each_token)
    bound = Add (count_view, step_view)
    visible = LessOrEqual (slot_view, bound)
    mask = Where (visible, float_zero, float_min)
    slots_3 = Unsqueeze (slots, one)
    slots_4 = Unsqueeze (slots_3, three)
    index = Expand (slots_4, like_new)
    keys = Concat <axis = 2> (past_key, key)
    present_key = GatherElements <axis = 2> (keys, index)
    values = Concat <axis = 2> (past_value, value)
    present_value = GatherElements <axis = 2> (values, index)
    keys_5 = Unsqueeze (present_key, two)
    keys_expanded = Expand (keys_5, repeats)
    keys_repeated = Reshape (keys_expanded, by_head)
    values_5 = Unsqueeze (present_value, two)
    values_expanded = Expand (values_5, repeats)
    values_repeated = Reshape (values_expanded, by_head)
    keys_transposed = Transpose <perm = [0, 1, 3, 2]> (keys_repeated)
    product = MatMul (query, keys_transposed)
    scores = Mul (product, scale)
    masked = Add (scores, mask)
    weights = Softmax <axis = -1> (masked)
    context = MatMul (weights, values_repeated)
    by_token = Transpose <perm = [0, 2, 1, 3]> (context)
    out = Reshape (by_token, flat)
}
"""

#: The same where every head has its own key: `repeat_kv` leaves nothing behind.
UNREPEATED = (
    TEXT.replace("[B, 2, ", "[B, 4, ")
    .replace("[1, 2, 1, 8]", "[1, 4, 1, 8]")
    .replace("Transpose <perm = [0, 1, 3, 2]> (keys_repeated)", "Transpose <perm = [0, 1, 3, 2]> (present_key)")
    .replace("MatMul (weights, values_repeated)", "MatMul (weights, present_value)")
)


def feeds(mask: list[list[int]], length: int, heads: int = 2) -> dict[str, np.ndarray]:
    rows, total = np.shape(mask)
    past = total - length
    return {
        "input_ids": np.zeros((rows, length), np.int64),
        "attention_mask": np.array(mask, np.int64),
        "query": numbers("query", rows, 4, length, 8),
        "key": numbers("key", rows, heads, length, 8),
        "value": numbers("value", rows, heads, length, 8),
        "past_key": numbers("past_key", rows, heads, past, 8),
        "past_value": numbers("past_value", rows, heads, past, 8),
    }


#: name -> (mask [B, T], new tokens S). GroupQueryAttention refuses S > 1 with a past and B > 1.
STEPS = {
    "prefill": ([[1, 1, 1, 1]] * 2, 4),
    "one step": ([[1, 1, 1, 1, 1]] * 2, 1),
    "chunk with a past, one row": ([[1, 1, 1, 1, 1]], 3),
    "first token": ([[1]], 1),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("heads", [2, 4])
def test_attention_becomes_one_operator(step: str, heads: int) -> None:
    text, spec = (TEXT, SPEC) if heads == 2 else (UNREPEATED, with_spec(num_key_value_heads=4))
    before, after = parse(text), parse(text)
    firing = fire(after, attention.fuse, spec)
    assert (firing.count, firing.refusals) == (1, [])
    count = operators(after)
    assert count["GroupQueryAttention"] == 1
    assert not set(count) & {"Softmax", "MatMul", "GatherElements", "Concat", "Where", "Expand"}
    node = next(node for node in after.graph if node.op_type == "GroupQueryAttention")
    assert node.domain == "com.microsoft"
    assert {name: attribute.value for name, attribute in node.attributes.items()} == {
        "num_heads": 4,
        "kv_num_heads": heads,
        "scale": pytest.approx(0.4),
    }
    assert [output.name for output in node.outputs[1:]] == ["present_key", "present_value"]
    assert_same_numbers(before, after, feeds(*STEPS[step], heads), atol=2e-6)


@pytest.mark.parametrize(
    ("mask", "length"),
    [
        ([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], 4),  # the rows are packed to the front by the trace
        ([[1, 1, 0, 0, 1], [1, 1, 1, 1, 1], [1, 0, 0, 0, 1]], 1),
        ([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], 1),  # a row that sits this step out
    ],
)
def test_uneven_rows_are_equal_on_their_own_slots(mask: list[list[int]], length: int) -> None:
    before, after = parse(TEXT), parse(TEXT)
    fire(after, attention.fuse)
    fed, source = feeds(mask, length), sources(before)
    expected, got = evaluate(before, fed, source), evaluate(after, fed, source)
    for row, valid in enumerate(np.sum(mask, axis=1)):
        new = int(np.sum(mask[row][-length:]))
        np.testing.assert_allclose(got["out"][row, :new], expected["out"][row, :new], atol=2e-6, rtol=0)
        for name in ("present_key", "present_value"):
            assert np.array_equal(got[name][row, :, :valid], expected[name][row, :, :valid]), (name, row)


def test_layers_share_their_lengths() -> None:
    body = TEXT.replace("(float[B, S, 32] out,", "(float[B, S, 32] out, float[B, S, 32] out_2,")
    second = """
    keys_transposed_2 = Transpose <perm = [0, 1, 3, 2]> (keys_repeated_2)
    product_2 = MatMul (query, keys_transposed_2)
    scores_2 = Mul (scale, product_2)
    masked_2 = Add (mask, scores_2)
    weights_2 = Softmax <axis = -1> (masked_2)
    context_2 = MatMul (weights_2, values_repeated_2)
    by_token_2 = Transpose <perm = [0, 2, 1, 3]> (context_2)
    out_2 = Reshape (by_token_2, flat)
    keys_2 = Concat <axis = 2> (past_value, key)
    present_key_2 = GatherElements <axis = 2> (keys_2, index)
    values_2 = Concat <axis = 2> (past_key, value)
    present_value_2 = GatherElements <axis = 2> (values_2, index)
    keys_5_2 = Unsqueeze (present_key_2, two)
    keys_expanded_2 = Expand (keys_5_2, repeats)
    keys_repeated_2 = Reshape (keys_expanded_2, by_head)
    values_5_2 = Unsqueeze (present_value_2, two)
    values_expanded_2 = Expand (values_5_2, repeats)
    values_repeated_2 = Reshape (values_expanded_2, by_head)
}
"""
    lines = second.splitlines()
    text = body.rstrip()[:-1] + "\n".join([*lines[9:-1], *lines[1:9], "}"])
    before, after = parse(text), parse(text)
    assert fire(after, attention.fuse).count == 2
    count = operators(after)
    assert count["GroupQueryAttention"] == 2 and count["Cast"] == 2 and count["Clip"] == 1
    assert_same_numbers(before, after, feeds(*STEPS["one step"]), atol=2e-6)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (
            "Concat <axis = 2> (past_key, key)",
            "Concat <axis = 2> (held, past_key)",
            "the cache does not come from a graph input",
        ),
        (
            "Concat <axis = 2> (past_key, key)",
            "Concat <axis = 2> (held, key)",
            "the cache does not come from a graph input",
        ),
        (
            "Concat <axis = 2> (past_value, value)",
            "Concat <axis = 2> (held, value)",
            "cache does not come from a graph input",
        ),
        ("masked = Add (scores, mask)", "masked = Add (product, mask)", "is made by Mul"),
        ("masked = Add (scores, mask)", "masked = Sub (scores, mask)", "expected Add before masked, found Sub"),
        ("scores = Mul (product, scale)", "scores = Mul (query, scale)", "is made by MatMul"),
        ("scale = Constant <value_float = 0.4> ()", "scale = ReduceMax (query)", "scale is no constant"),
        (
            "keys_transposed = Transpose <perm = [0, 1, 3, 2]> (keys_repeated)",
            "keys_transposed = Identity (keys_repeated)",
            "expected Transpose before keys_transposed, found Identity",
        ),
        (
            "keys_expanded = Expand (keys_5, repeats)",
            "keys_expanded = Tile (keys_5, repeats)",
            "expected Expand before keys_expanded, found Tile",
        ),
        (
            "present_key = GatherElements <axis = 2> (keys, index)",
            "present_key = Identity (keys)",
            "expected GatherElements before present_key, found Identity",
        ),
        ("bound = Add (count_view, step_view)", "bound = Sub (count_view, step_view)", "expected Add before bound"),
        ("visible = LessOrEqual (", "visible = Less (", "expected LessOrEqual before visible, found Less"),
        (
            "count_view = Reshape (past_count, each_row)",
            "count_view = Reshape (all_count, each_row)",
            "the mask does not start from each row's own past",
        ),
        (
            "context = MatMul (weights, values_repeated)",
            "also = Neg (weights)\n    context = MatMul (weights, values_repeated)",
            "expected one MatMul",
        ),
    ],
)
def test_near_misses_are_refused(old: str, new: str, reason: str) -> None:
    text = edited(edited(TEXT, "keys = Concat", "held = Neg (past_key)\n    keys = Concat"), old, new)
    model = parse(text)
    count = operators(model)
    firing = attention.fuse(model, SPEC)
    assert firing.count == 0 and len(firing.refusals) == 1
    assert firing.refusals[0].startswith("Softmax weights: ") and reason in firing.refusals[0]
    assert operators(model)["GroupQueryAttention"] == 0 and operators(model)["Softmax"] == count["Softmax"]


def test_expected() -> None:
    assert attention.expected(with_spec(layer_types=(CONV, FULL_ATTENTION, FULL_ATTENTION))) == 2
