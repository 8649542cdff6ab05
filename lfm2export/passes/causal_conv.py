"""Short convolutions in fewer kernels: one CausalConvWithState a layer, and the states of all layers together.

    past_conv - Transpose - Concat(B * x) = window            (of each layer)
    window - Gather(taps) - Mul(kernel) - ReduceSum - y
    window - GatherElements(ends) - Transpose - present_conv
                                      ->
    every past_conv [B, H, L] - Concat - Einsum(transpose) - past [B, L, layers * H] - Split - state [B, L, H]
    B * x, Concat(0, kernel), state - CausalConvWithState(channels_last) - y           (of each layer)
    B * x - GatherND(newest) - rows [B, L, H]                                          (of each layer)
    every rows - Concat - Concat(past, .) - GatherND(ends) - Einsum - Split - every present_conv

Once a conv layer. On a GPU a step of a small model is as long as its list of kernels: here are five a layer in place
of ten, and a dozen for all layers together. The operator's own state would be that of the last row, pad or not; what
is gathered is the state at each row's own end, as ever, and a row without a new token keeps its own. The kernel has a
zero in front, so that the operator's state is as long as the contract's.

A GPU may bind as few as 8 buffers to a kernel: no Concat has more than 7 inputs and no Split more than 7 outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lfm2export.contract import MICROSOFT
from lfm2export.passes.matching import Builder, Firing, NoMatch, expect, only_user, recipe_of, require_ints, rewrite
from lfm2export.passes.short_conv import CHANNELS_LAST
from lfm2export.spec import ModelSpec

#: Inputs of a Concat, and outputs of a Split: WebGPU promises 8 storage buffers to a shader.
MOST = 7

#: [B, L, H] <-> [B, H, L]. onnxruntime pushes a Transpose behind the Split, where it is one for each layer again.
TRANSPOSE = "bij->bji"


def expected(spec: ModelSpec) -> int:
    return len(spec.conv_layers)


@dataclass(frozen=True)
class _Layer:
    """past [B, H, L], present likewise; gated: B * x [B, S, H]; y [B, S, H]; kernel [L, 1, H]; ends [B, L, 1]."""

    past: ir.Value
    present: ir.Value
    gated: ir.Value
    y: ir.Value
    kernel: ir.Value
    ends: ir.Value


def fuse(model: ir.Model, spec: ModelSpec) -> Firing:
    found: list[tuple[_Layer, Builder]] = []
    firing = rewrite(model, "ReduceSum", lambda node, op: found.append((_match(node), op)))
    if not found:
        return firing
    layers = [layer for layer, _ in found]
    first, last = found[0][1], found[-1][1]
    past = first("Einsum", _joined(first, [layer.past for layer in layers], 1), equation=TRANSPOSE)
    states = _parted(first, past, [spec.hidden_size] * len(layers), 2)
    newest = _newest(first, layers[0].ends, model.graph.inputs[0], spec.conv_L_cache)
    rows = []
    for (layer, op), state in zip(found, states, strict=True):
        kernel = _kernel(op, layer.kernel, spec)
        convolved = op.many(
            "CausalConvWithState", [layer.gated, kernel, None, state], 2, domain=MICROSOFT, channels_last=1, ndim=1
        )
        op.replace(layer.y, convolved[0])  # the CPU's kernel writes the other output, whoever reads it
        rows.append(op("GatherND", layer.gated, newest, batch_dims=1))
    both = last("Concat", past, _joined(last, rows, 2), axis=1)
    ends = last("Min", layers[0].ends, last.constant(_column(spec.conv_L_cache, spec.conv_L_cache)))
    present = last("Einsum", last("GatherND", both, ends, batch_dims=1), equation=TRANSPOSE)
    presents = _parted(last, present, [spec.hidden_size] * len(layers), 1)
    for layer, value in zip(layers, presents, strict=True):
        last.replace(layer.present, value)
    return firing


def _match(node: ir.Node) -> _Layer:
    """The layer whose convolution ends in this ReduceSum, as `short_conv` writes it."""
    product = expect(node.inputs[0], "Mul")
    window, kernel = expect(product.inputs[0], "Gather").inputs[0], product.inputs[1]
    past, gated = expect(window, "Concat").inputs
    transpose = expect(past, "Transpose")
    require_ints(transpose, perm=CHANNELS_LAST)
    assert window is not None
    gather = next((user for user in window.consumers() if user.op_type == "GatherElements"), None)
    if gather is None or gated is None or kernel is None or transpose.inputs[0] is None:
        raise NoMatch("the window does not feed the next state")
    ends = expect(gather.inputs[1], "Expand").inputs[0]
    present = only_user(gather.outputs[0], "Transpose").outputs[0]
    recipe_of(kernel)
    assert ends is not None
    return _Layer(transpose.inputs[0], present, gated, node.outputs[0], kernel, ends)


def _newest(op: Builder, ends: ir.Value, tokens: ir.Value, length: int) -> ir.Value:
    """[B, L, 1]: the rows of B * x that end with each row's last token; its first L where there are not so many.

    ends: the rows of concat(state, B * x) that are the next state. What is taken behind a row's end is not used.
    """
    inside = op("Max", op("Sub", ends, op.constant([length])), op.constant(_column(0, length)))
    return op("Min", inside, op("Sub", op("Shape", tokens, start=1, end=2), op.constant([1])))


def _column(start: int, length: int) -> np.ndarray:
    return np.arange(start, start + length).reshape(length, 1)


def _kernel(op: Builder, kernel: ir.Value, spec: ModelSpec) -> ir.Value:
    """[H, 1, L + 1]: the depthwise kernel behind a zero."""
    recipe = recipe_of(kernel).transposed()
    zero = np.zeros((spec.hidden_size, 1, 1), ir.DataType[recipe.dtype].numpy())
    return op("Concat", op.constant(zero), op.weight(recipe.parts[0], recipe), axis=2)


def _joined(op: Builder, values: Sequence[ir.Value], axis: int) -> ir.Value:
    """Their concatenation, by Concats of MOST inputs at most."""
    found, rest = values[0], list(values[1:])
    while rest:
        found = op("Concat", found, *rest[: MOST - 1], axis=axis)
        rest = rest[MOST - 1 :]
    return found


def _parted(op: Builder, value: ir.Value, sizes: Sequence[int], axis: int) -> list[ir.Value]:
    """Its parts of these sizes, by Splits of MOST outputs at most."""
    found: list[ir.Value] = []
    rest = list(sizes)
    while len(rest) > 1:
        cut = rest if len(rest) <= MOST else [*rest[: MOST - 1], sum(rest[MOST - 1 :])]
        *parts, value = op.many("Split", [value, op.constant(cut)], len(cut), axis=axis)
        found += parts
        rest = rest[len(parts) :]
    return [*found, value]
