"""Grouped-query attention: caches, mask and softmax become one com.microsoft GroupQueryAttention.

    past_key, k [B, K, S, D] - Concat - GatherElements(slots) - present_key - repeat to N heads --+ q [B, N, S, D]
    ------------------------------------------------------------- MatMul - * scale + mask - Softmax -+ past_value, v
    [B, K, S, D] - Concat - GatherElements(slots) - present_value - repeat to N heads ---------- MatMul - out
                                      ->
    q, k, v [B, S, heads * D], past_key, past_value, seqlens_k [B], total_sequence_length
        --- GroupQueryAttention --- out [B, S, N * D], present_key, present_value

Once an attention layer. The operator takes each row's length from seqlens_k and wants rows packed to the front, which
is how the trace lays them out; seqlens_k is (valid tokens of the row) - 1, never less than its past, so that a step
whose new token is masked out leaves the row's past untouched. `present` is the operator's own output, so a runtime may
bind one buffer as past and present. Rotation stays outside: with do_rotary the CPU's prefill ignores per-token
positions.
"""

from __future__ import annotations

import onnx_ir as ir

from lfm2export.contract import MICROSOFT
from lfm2export.passes.matching import (
    Builder,
    Firing,
    NoMatch,
    constant_array,
    expect,
    only_user,
    operands,
    require,
    require_ints,
    rewrite,
    scalar,
)
from lfm2export.spec import ModelSpec

HEADS_LAST = [0, 2, 1, 3]  # [B, S, N, D] <-> [B, N, S, D]


def expected(spec: ModelSpec) -> int:
    return len(spec.attention_layers)


def fuse(model: ir.Model, spec: ModelSpec) -> Firing:
    mask_input = model.graph.inputs[1]
    lengths: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}

    def attempt(softmax: ir.Node, op: Builder) -> None:
        scores, mask = operands(expect(softmax.inputs[0], "Add"), "Mul")
        product, scale = operands(scores, "MatMul")
        query, keys = product.inputs
        require_ints(softmax, axis=[-1])
        transposed = expect(keys, "Transpose")
        require_ints(transposed, perm=[0, 1, 3, 2])
        present_key = _without_repeat(transposed.inputs[0])
        context = only_user(softmax.outputs[0], "MatMul")
        present_value = _without_repeat(context.inputs[1])
        require(context.inputs[0] is softmax.outputs[0], "the scores do not weigh the values")
        by_token = only_user(context.outputs[0], "Transpose")
        require_ints(by_token, perm=HEADS_LAST)
        merged = only_user(by_token.outputs[0], "Reshape")
        past_key, key = _appended(present_key)
        past_value, value = _appended(present_value)
        if mask not in lengths:
            lengths[mask] = _lengths(op, mask, mask_input)
        seqlens, total = lengths[mask]
        inputs = [_flat(op, x) for x in (query, key, value)]
        out, new_key, new_value = op.many(
            "GroupQueryAttention",
            [*inputs, past_key, past_value, seqlens, total],
            3,
            domain=MICROSOFT,
            num_heads=spec.num_attention_heads,
            kv_num_heads=spec.num_key_value_heads,
            scale=scalar(scale),
        )
        op.replace(merged.outputs[0], out)
        op.replace(present_key, new_key)
        op.replace(present_value, new_value)

    return rewrite(model, "Softmax", attempt)


def _without_repeat(value: ir.Value | None) -> ir.Value:
    """Through `repeat_kv` (Unsqueeze, Expand, Reshape), which is absent where every head has its own key."""
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "Reshape":
        unsqueeze = expect(expect(producer.inputs[0], "Expand").inputs[0], "Unsqueeze")
        require(constant_array(unsqueeze.inputs[1]).tolist() == [2], "heads are tiled, expected each repeated in place")
        value = unsqueeze.inputs[0]
    expect(value, "GatherElements")
    assert value is not None
    return value


def _appended(present: ir.Value) -> tuple[ir.Value, ir.Value]:
    """(past, new) of GatherElements(Concat(past, new), slots)."""
    gather = expect(present, "GatherElements")
    require_ints(gather, axis=[2])
    slots = expect(expect(gather.inputs[1], "Expand").inputs[0], "Unsqueeze").inputs[0]
    expect(expect(slots, "Unsqueeze").inputs[0], "Where")
    both = expect(gather.inputs[0], "Concat")
    require_ints(both, axis=[2])
    past, new = both.inputs
    if past is None or new is None or not past.is_graph_input():
        raise NoMatch("the cache does not come from a graph input")
    return past, new


def _flat(op: Builder, heads: ir.Value | None) -> ir.Value:
    """[B, heads, S, D] -> [B, S, heads * D]."""
    return op("Reshape", op("Transpose", heads, perm=HEADS_LAST), op.constant([0, 0, -1]))


def _lengths(op: Builder, mask: ir.Value, mask_input: ir.Value) -> tuple[ir.Value, ir.Value]:
    """(seqlens_k int32 [B], total_sequence_length int32 [1]), from what the mask was made of."""
    choice = expect(mask, "Where")
    hides = scalar(choice.inputs[1]) == 0 and scalar(choice.inputs[2]) < -1e9
    require(hides, "the mask does not hide what is behind")
    comparison = expect(choice.inputs[0], "LessOrEqual")
    expect(expect(comparison.inputs[0], "Reshape").inputs[0], "Range")
    bound = expect(comparison.inputs[1], "Add")
    for view in bound.inputs:
        past_count = expect(view, "Reshape").inputs[0]
        producer = past_count.producer() if past_count is not None else None
        if producer is not None and producer.op_type == "Sub":
            break
    else:
        raise NoMatch("the mask does not start from each row's own past")
    new_count = producer.inputs[1]
    last = op("Clip", op("Sub", new_count, op.scalar_int(1)), op.scalar_int(0))
    seqlens = op("Squeeze", op("Add", past_count, last), op.constant([1]))
    total = op("Shape", mask_input, start=1, end=2)
    int32 = ir.DataType.INT32
    return (
        op("Cast", seqlens, to=int32, name="attention.seqlens_k"),
        op("Cast", total, to=int32, name="attention.total_sequence_length"),
    )
