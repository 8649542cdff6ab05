"""int8 keys and values: com.microsoft GroupQueryAttention on codes, one scale a channel.

    out, present = GroupQueryAttention(q, k, v, past, ...)        past, present float32
                                      ->
    out, present = If(S > FEW)                                    past, present int8
      else:  GroupQueryAttention(q, k, v, past, ..., k_scale, v_scale)
      then:  codes of k, v = Clip(Round(k / k_scale)), Clip(Round(v / v_scale))
             a, all = GroupQueryAttention(q * k_scale, codes of k, codes of v, float(past), ...)
             out, present = a * v_scale, int8(all)

Once an attention layer. Both branches compute the same: a key's scales can be the query's, a value's the result's, so
that attention over codes needs no other arithmetic than over floats. The operator's own int8 kernel reads a quarter of
the bytes, which is what a step of one token waits for; but it dequantizes keys and values anew for every query and
looks at those behind it too, and so takes 4 times as long as float32 for a part of a prompt, 7 times for 4,096 tokens
at once (measured, onnxruntime 1.32). Some milliseconds of casts per layer bring a prompt back to the speed of floats.

The casts are QuantizeLinear and DequantizeLinear at scale 1, which run on several threads; Cast does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import onnx_ir as ir

from lfm2export import contract
from lfm2export.contract import MICROSOFT
from lfm2export.kv_scales import CODES, KvScales
from lfm2export.passes.matching import Builder, Firing, require, rewrite
from lfm2export.spec import ModelSpec
from lfm2export.weights import NAMED

#: Up to so many new tokens the operator's own kernel is as fast: 8 queries over 4,096 tokens take it 1.8 ms, floats .9
#: and the casts as long again.
FEW = 8

_INPUTS = 12  # of the operator, before the scales

Kind = Literal["key", "value"]


def fuse_with(scales: KvScales) -> Callable[[ir.Model, ModelSpec], Firing]:
    """The pass for these scales."""

    def fuse(model: ir.Model, spec: ModelSpec) -> Firing:
        shared: list[ir.Value] = []
        pasts = {contract.past_key_value(layer, "key"): layer for layer in spec.attention_layers}

        def attempt(node: ir.Node, op: Builder) -> None:
            past = node.inputs[3]
            require(past is not None and past.name in pasts, "its past is no cache of the contract")
            layer = pasts[str(past.name)]  # type: ignore[union-attr]
            held = scales.layers[layer]
            if not shared:
                shared.append(_many(op))
            _Layer(op, node, spec, layer).rewrite(shared[0], held.key, held.value)

        firing = rewrite(model, "GroupQueryAttention", attempt)
        for cache in contract.caches(spec, "float32"):
            for value in (*model.graph.inputs, *model.graph.outputs):
                if cache.kind != "conv" and value.name in (cache.past.name, cache.present.name):
                    value.type = ir.TensorType(ir.DataType.INT8)
        return firing

    return fuse


def expected(spec: ModelSpec) -> int:
    return len(spec.attention_layers)


def _many(op: Builder) -> ir.Value:
    """Whether a step has more than FEW tokens."""
    ids = next(value for value in op.graph.inputs if value.name == contract.INPUT_IDS)
    count = op("Squeeze", op("Shape", ids, start=1, end=2))
    return op("Greater", count, op.scalar_int(FEW))


def _scopes(op: Builder) -> dict[str, str]:
    """Of the anchor, its own copy for each node: naming empties what it has read."""
    return dict(op.anchor.metadata_props)


class _Branch:
    """Nodes of one branch of an If; they may read whatever is at hand before it."""

    def __init__(self, op: Builder, name: str) -> None:
        self.op, self.name, self.nodes = op, name, list[ir.Node]()

    def __call__(self, op_type: str, *inputs: ir.Value | None, **attributes: object) -> ir.Value:
        return self.many(op_type, inputs, 1, domain="", **attributes)[0]

    def many(
        self, op_type: str, inputs: tuple[ir.Value | None, ...], outputs: int, *, domain: str = "", **attributes: object
    ) -> tuple[ir.Value, ...]:
        node = ir.node(
            op_type,
            inputs,
            attributes=attributes,  # type: ignore[arg-type]
            domain=domain,
            num_outputs=outputs,
            metadata_props=_scopes(self.op),
        )
        self.nodes.append(node)
        return tuple(node.outputs)

    def graph(self, out: ir.Value, *present: ir.Value) -> ir.Graph:
        """The branch that gives the result, float32, and both caches, int8."""
        kinds = (ir.DataType.FLOAT, ir.DataType.INT8, ir.DataType.INT8)
        for value, kind, part in zip((out, *present), kinds, ("output", "key", "value"), strict=True):
            value.name, value.type = f"{self.name}/{part}", ir.TensorType(kind)
        return ir.Graph((), (out, *present), nodes=self.nodes, name=self.name)


class _Layer:
    """The attention of one layer, `node`, rewritten. Letters: K KV heads, N heads, D head_dim."""

    def __init__(self, op: Builder, node: ir.Node, spec: ModelSpec, layer: int) -> None:
        self.op, self.node, self.spec, self.layer = op, node, spec, layer
        self.query, *self.new = node.inputs[:3]
        self.past = node.inputs[3:5]
        self.counts = node.inputs[5:7]
        self.attributes = {name: attribute.value for name, attribute in node.attributes.items()}

    def rewrite(self, many: ir.Value, *scales: np.ndarray) -> None:
        """scales: of keys, of values."""
        kinds: tuple[Kind, ...] = ("key", "value")
        held = [self._scale(kind, values) for kind, values in zip(kinds, scales, strict=True)]
        branches = {"then_branch": self._prompt(held), "else_branch": self._step(held)}
        choice = ir.node("If", [many], branches, num_outputs=3, metadata_props=_scopes(self.op))
        self.op.graph.insert_before(self.op.anchor, choice)
        for old, new in zip(self.node.outputs, choice.outputs, strict=True):
            self.op.replace(old, new)

    def _scale(self, kind: Kind, values: np.ndarray) -> ir.Value:
        """The initializer [1, K, 1, D], under the contract's name."""
        name = contract.key_value_scale(self.layer, kind)
        tensor = ir.tensor(np.ascontiguousarray(values[None, :, None], np.float32), name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(values[None, :, None].shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        value.meta[NAMED] = True
        self.op.graph.register_initializer(value)
        return value

    def _step(self, scales: list[ir.Value]) -> ir.Graph:
        branch = _Branch(self.op, f"attention.{self.layer}.step")
        inputs = (*self.node.inputs, *[None] * (_INPUTS - len(self.node.inputs)), *scales)
        types = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
        found = branch.many("GroupQueryAttention", inputs, 3, domain=MICROSOFT, **self.attributes, **types)
        return branch.graph(*found)

    def _prompt(self, scales: list[ir.Value]) -> ir.Graph:
        branch = _Branch(self.op, f"attention.{self.layer}.prompt")
        op = self.op
        flat = [op("Reshape", scale, op.constant([-1])) for scale in scales]  # [K * D]
        by_head = [self._of_heads(scale) for scale in scales]  # [N * D]
        low, high = (op.constant(np.array(code, np.float32)) for code in CODES)
        one, zero = op.constant(np.array(1, np.float32)), op.constant(np.array(0, np.int8))
        codes = [
            branch("Clip", branch("Round", branch("Div", new, scale)), low, high)
            for new, scale in zip(self.new, flat, strict=True)
        ]
        past = [branch("DequantizeLinear", value, one, zero) for value in self.past]
        query = branch("Mul", self.query, by_head[0])
        mixed, *present = branch.many(
            "GroupQueryAttention", (query, *codes, *past, *self.counts), 3, domain=MICROSOFT, **self.attributes
        )
        kept = [branch("QuantizeLinear", value, one, zero) for value in present]
        return branch.graph(branch("Mul", mixed, by_head[1]), *kept)

    def _of_heads(self, scale: ir.Value) -> ir.Value:
        """[1, K, 1, D] -> [N * D]: the scales of each head's keys or values."""
        op, shares = self.op, self.spec.num_attention_heads // self.spec.num_key_value_heads
        each = op("Expand", scale, op.constant([1, 1, shares, 1]))
        return op("Reshape", each, op.constant([-1]))
