"""Short convolution with state: `Lfm2ShortConv` around its cache, with two Transposes of one third the size and no
Slices.

    BCx [B, S, 3H] - Transpose - Split - B, C, x        window = Concat(past_conv, B * x)  [B, H, L + S]
    window - Conv(L taps, pads L-1 both sides) - Slice - Slice - y [B, H, S];  C * y - Transpose
    window - GatherElements(ends) - present_conv
                                      ->
    BCx [B, S, 3H] - Split - B, C, x                    window = Concat(past_conv, Transpose(B * x))
    window - Conv(0 and L taps, no pads) - Transpose;  C * y
    window - GatherElements(ends) - present_conv

Once a conv layer. The state is L wide by contract, of which the kernel needs L - 1: a zero tap in front of the kernel
(`Recipe.leading_zeros`) makes the convolution of the whole window exactly S long.
"""

from __future__ import annotations

from dataclasses import replace

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
        bx = op("Transpose", op("Mul", b, x), perm=CHANNELS_LAST)
        joined = op("Concat", past, bx, axis=2)
        op.replace(gather.outputs[0], op("GatherElements", joined, gather.inputs[1], axis=2))
        y = op("Conv", joined, _kernel(op, conv, taps), *conv.inputs[2:], group=hidden, kernel_shape=[taps + 1])
        op.replace(result.outputs[0], op("Mul", c, op("Transpose", y, perm=CHANNELS_LAST)))

    return rewrite(model, "Conv", attempt)


def _is_negative(start: ir.Value | None) -> bool:
    """Whether a Slice starts at minus the number of new tokens: Neg(S), reshaped or not."""
    producer = start.producer() if start is not None else None
    if producer is not None and producer.op_type == "Reshape":
        producer = producer.inputs[0].producer() if producer.inputs[0] is not None else None
    return producer is not None and producer.op_type == "Neg"


def _kernel(op: Builder, conv: ir.Node, taps: int) -> ir.Value:
    """The depthwise kernel [H, 1, L] with a zero tap in front, [H, 1, L + 1]."""
    kernel = conv.inputs[1]
    while kernel is not None and kernel.producer() is not None:  # Squeeze and Unsqueeze of the module's two code paths
        kernel = kernel.producer().inputs[0]  # type: ignore[union-attr]
    recipe = recipe_of(kernel)
    shape = (*recipe.shape[:-1], taps + 1)
    return op.weight(f"{recipe.parts[0]}.padded", replace(recipe, shape=shape, leading_zeros=1))
