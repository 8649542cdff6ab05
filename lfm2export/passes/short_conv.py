"""Short convolution with state: `Lfm2ShortConv` around its cache, channels last, its taps gathered.

    BCx [B, S, 3H] - Transpose - Split - B, C, x        window = Concat(past_conv, B * x)  [B, H, L + S]
    window - Conv(L taps, pads L-1 both sides) - Slice - Slice - y [B, H, S];  C * y - Transpose
    window - GatherElements(ends) - present_conv
                                      ->
    BCx [B, S, 3H] - Split - B, C, x                    window = Concat(Transpose(past_conv), B * x)  [B, L + S, H]
    window - Gather(taps) [B, L, S, H] - Mul(kernel) - ReduceSum - y [B, S, H];  C * y
    window - GatherElements(ends) - Transpose - present_conv

Once a conv layer. Only the state is transposed, never the tokens. The CPU's Conv goes through a depthwise kernel one
channel at a time: at decode it alone cost 5 % of a step of 350M, five times what the three operators here cost, which
copy and add whole rows of H. `taps` [L, S] are the rows of the window under each tap, shared by all layers; the state
is L wide by contract, of which the kernel needs L - 1, so the first tap stands on row 1.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lfm2export.passes.matching import (
    Builder,
    Firing,
    NoMatch,
    constant_array,
    expect,
    only_user,
    recipe_of,
    require,
    require_ints,
    rewrite,
)
from lfm2export.spec import ModelSpec

CHANNELS_LAST = [0, 2, 1]  # [B, S, H] <-> [B, H, S]


def expected(spec: ModelSpec) -> int:
    return len(spec.conv_layers)


def fuse(model: ir.Model, spec: ModelSpec) -> Firing:
    hidden, taps = spec.hidden_size, spec.conv_L_cache
    tokens = model.graph.inputs[0]  # [B, S]

    def attempt(conv: ir.Node, op: Builder) -> None:
        window = expect(conv.inputs[0], "Concat")
        past, gated = window.inputs
        if past is None or not past.is_graph_input():
            raise NoMatch("the window does not start with a graph input")
        pads = conv.attributes.get("pads")
        is_padded = pads is not None and list(pads.as_ints()) == [taps - 1, taps - 1]
        require(is_padded, "the convolution is not padded by L - 1 on both sides")
        require_ints(conv, group=[hidden])
        for name in ("strides", "dilations"):
            if name in conv.attributes:
                require_ints(conv, **{name: [1]})
        require_ints(window, axis=[-1])
        split = expect(expect(gated, "Mul").inputs[0], "Split")
        require_ints(split, axis=[1])
        b, c, x = split.outputs
        require(set(expect(gated, "Mul").inputs) == {b, x}, "B and x do not come from one projection")
        transpose = expect(split.inputs[0], "Transpose")
        require_ints(transpose, perm=CHANNELS_LAST)
        whole = only_user(conv.outputs[0], "Slice")
        require(constant_array(whole.inputs[1]).tolist() == [0], "the first Slice does not start with the window")
        cut = only_user(whole.outputs[0], "Slice")
        require(_is_negative(cut.inputs[1]), "the second Slice does not take the last steps")
        product = only_user(cut.outputs[0], "Mul")
        require(c in product.inputs, "the result is not gated by C")
        result = only_user(product.outputs[0], "Transpose")
        require_ints(result, perm=CHANNELS_LAST)
        gather = next((n for n in window.outputs[0].consumers() if n.op_type == "GatherElements"), None)
        if gather is None:
            raise NoMatch("the window does not feed the next state")

        b, c, x = op.many("Split", [transpose.inputs[0]], 3, axis=-1, num_outputs=3)
        rows = op("Transpose", past, perm=CHANNELS_LAST)
        joined = op("Concat", rows, op("Mul", b, x), axis=1)
        state = op("GatherElements", joined, _ends(op, gather, hidden), axis=1)
        op.replace(gather.outputs[0], op("Transpose", state, perm=CHANNELS_LAST))
        taps_apart = op("Mul", op("Gather", joined, _taps(op, tokens, taps), axis=1), _kernel(op, conv))
        y = op("ReduceSum", taps_apart, op.constant([1]), keepdims=0)
        for bias in conv.inputs[2:]:
            y = op("Add", y, bias)
        op.replace(result.outputs[0], op("Mul", c, y))

    return rewrite(model, "Conv", attempt)


def _is_negative(start: ir.Value | None) -> bool:
    """Whether a Slice starts at minus the number of new tokens: Neg(S), reshaped or not."""
    producer = start.producer() if start is not None else None
    if producer is not None and producer.op_type == "Reshape":
        producer = producer.inputs[0].producer() if producer.inputs[0] is not None else None
    return producer is not None and producer.op_type == "Neg"


def _taps(op: Builder, tokens: ir.Value, taps: int) -> ir.Value:
    """[L, S]: at (k, s) the row of the window under tap k for new token s, which is k + s + 1."""
    length = op("Squeeze", op("Shape", tokens, start=1, end=2))
    steps = op("Range", op.scalar_int(0), length, op.scalar_int(1))
    return op("Add", steps, op.constant(np.arange(1, taps + 1).reshape(taps, 1)))


def _ends(op: Builder, gather: ir.Node, hidden: int) -> ir.Value:
    """The rows of the window that are the next state, [B, L, H], from the index [B, H, L] of the traced gather."""
    unsqueeze = expect(expect(gather.inputs[1], "Expand").inputs[0], "Unsqueeze")
    require(constant_array(unsqueeze.inputs[1]).tolist() == [1], "the next state is not the same for every channel")
    return op("Expand", op("Unsqueeze", unsqueeze.inputs[0], op.constant([2])), op.constant([1, 1, hidden]))


def _kernel(op: Builder, conv: ir.Node) -> ir.Value:
    """The depthwise kernel [H, 1, L] as [L, 1, H]."""
    kernel = conv.inputs[1]
    while kernel is not None and kernel.producer() is not None:  # Squeeze and Unsqueeze of the module's two code paths
        kernel = kernel.producer().inputs[0]  # type: ignore[union-attr]
    recipe = recipe_of(kernel)
    return op.weight(f"{recipe.parts[0]}.transposed", recipe.transposed())
