"""8 bits at work (W8A8): weights int8 with a scale per output channel, activations uint8 with a scale per token.

    x [B, S, K], W [K, N] - MatMul - y      ->

    x - Flatten [M, K] -+------------------------------------- QuantizeLinear(axis 0) - q uint8 [M, K], M = B S
                        `- Abs - ReduceMax - Mul(1/127) - Max(tiny) - s [M] -'  zero point 128 each
    q, W int8 - MatMulInteger(zero point 128) - Cast - Mul(channel scales [N]) - Mul(s [M, 1]) - Reshape - y [B, S, N]

    ids - Gather(table int8), Gather(scales) - Cast, Mul - embedding
    x - ... - MatMulInteger(q, Transpose(table)) - ... - logits

A scale belongs to one token, never to the tensor: what a row of a batch, a chunk of a prompt or a padded row computes
does not depend on its neighbours. Products that read one value share its rounding. The form is the one that is fast on
every runtime: onnxruntime's wasm has no kernel for MatMulNBits (every product dequantizes its whole matrix), and its
MatMulInteger is fast for uint8 by int8 without zero points of the weights only. QuantizeLinear with a scale per row is
1.3 times as fast at 128 tokens as the same in Div, Round, Add and Cast. A tied table is stored once, as rows; the
runtime folds the head's transposed form while it loads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from lfm2export import contract
from lfm2export.contract import LogitsMode
from lfm2export.passes.matching import Builder, Firing, NoMatch, expect, recipe_of, rewrite
from lfm2export.recipes import TABLES
from lfm2export.spec import ModelSpec
from lfm2export.weights import ChannelFormat, Recipe, stacked_name

#: Codes of activations lie symmetrically around it, from 1 to 255.
ZERO_POINT = 128
LARGEST_CODE = 127

#: The scale of a row of zeros, such as a pad's.
TINY_SCALE = 1e-30

#: Suffixes of initializers: int8 codes as the operator multiplies by them [in, out], or as rows [out, in].
TRANSPOSED, ROWS, SCALES = "int8", "int8_rows", "channel_scales"


def projections_pass(form: ChannelFormat, logits: LogitsMode) -> Callable[[ir.Model, ModelSpec], Firing]:
    """Every MatMul with a weight but the head's."""

    def fuse(model: ir.Model, spec: ModelSpec) -> Firing:
        def attempt(node: ir.Node, op: Builder) -> None:
            recipe = recipe_of(node.inputs[1])
            if recipe.parts[0] in TABLES:
                raise NoMatch("the head is read with the table")
            last = logits == "last" and _reads_last_tokens(recipe.parts[0], spec)
            op.replace(node.outputs[0], product(op, node.inputs[0], _transposed(op, recipe, form), last=last))

        return rewrite(model, "MatMul", attempt)

    return fuse


def table_pass(form: ChannelFormat, logits: LogitsMode) -> Callable[[ir.Model, ModelSpec], Firing]:
    """The embedding lookup and the head: one matrix if tied, two if not."""

    def fuse(model: ir.Model, spec: ModelSpec) -> Firing:
        def look_up(node: ir.Node, op: Builder) -> None:
            codes, scales = _rows(op, recipe_of(node.inputs[0]), form)
            values = op("Cast", op("Gather", codes, node.inputs[1], axis=0), to=ir.DataType.FLOAT)
            row_scales = op("Unsqueeze", op("Gather", scales, node.inputs[1], axis=0), op.constant([2]))
            op.replace(node.outputs[0], op("Mul", values, row_scales))

        def head(node: ir.Node, op: Builder) -> None:
            recipe = recipe_of(node.inputs[1])
            if node.op_type == "Gemm":
                x = expect(node.inputs[0], "Reshape").inputs[0]
                out = next(iter(node.outputs[0].consumers())).outputs[0]
                codes, scales = _rows(op, recipe, form)
                weights = _Weights(op("Transpose", codes, perm=[1, 0]), scales, recipe.shape[0])
            else:
                x, out = node.inputs[0], node.outputs[0]
                weights = _transposed(op, recipe, form)
            op.replace(out, product(op, x, weights, last=logits == "last"))

        firing = rewrite(model, "Gather", look_up)
        heads = rewrite(model, "Gemm" if spec.tie_word_embeddings else "MatMul", head)
        return Firing(firing.count + heads.count, firing.refusals + heads.refusals)

    return fuse


@dataclass(frozen=True)
class _Weights:
    """A matrix in the graph: codes int8 [K, N], scales float32 [N]; `rows` is N."""

    codes: ir.Value
    scales: ir.Value
    rows: int


def product(op: Builder, x: ir.Value | None, weights: _Weights, *, last: bool) -> ir.Value:
    """x [B, S, K] -> [B, S, N]; last: x holds the last token of each row, where others hold every new token.

    What follows from the number of tokens alone is computed once for all products of every token.
    """
    ids = next(value for value in op.graph.inputs if value.name == contract.INPUT_IDS)
    leading = op("Shape", x, end=2) if last else op("Shape", ids)
    codes, scales = _rounded(op, x, op("ReduceProd", leading, keepdims=1))
    zero = op.constant(np.array(ZERO_POINT, np.uint8))
    sums = op("Cast", op("MatMulInteger", codes, weights.codes, zero), to=ir.DataType.FLOAT)
    values = op("Mul", op("Mul", sums, weights.scales), op("Unsqueeze", scales, op.constant([1])))
    return op("Reshape", values, op("Concat", leading, op.constant([weights.rows]), axis=0))


def _rounded(op: Builder, x: ir.Value | None, tokens: ir.Value) -> tuple[ir.Value, ir.Value]:
    """x [B, S, K] -> codes uint8 [M, K] and scales float32 [M]; `tokens` is [M]. Equal ones merge after the pass."""
    rows = op("Flatten", x, axis=2)
    largest = op("ReduceMax", op("Abs", rows), op.constant([1]), keepdims=0)
    scaled = op("Mul", largest, op.constant(np.array(1 / LARGEST_CODE, np.float32)))
    scales = op("Max", scaled, op.constant(np.array(TINY_SCALE, np.float32)))
    # Not Expand: WebGPU has a kernel for it that cannot take uint8.
    zeros = op("ConstantOfShape", tokens, value=ir.tensor(np.array([ZERO_POINT], np.uint8)))
    return op("QuantizeLinear", rows, scales, zeros, axis=0), scales


def _reads_last_tokens(part: str, spec: ModelSpec) -> bool:
    """Whether `passes.last_token` left only the last token of each row to the matrix of `part`."""
    first = (".in_proj.", ".q_proj.", ".k_proj.", ".v_proj.")
    return part.startswith(f"model.layers.{spec.num_hidden_layers - 1}.") and not any(name in part for name in first)


def _transposed(op: Builder, recipe: Recipe, form: ChannelFormat) -> _Weights:
    """`recipe`, a matrix stored either way round, as [in, out]."""
    rows, columns = recipe.shape if not recipe.transpose else recipe.shape[::-1]
    name = stacked_name(recipe.parts)
    base = replace(recipe, block=form.block(columns))
    codes = replace(base, component="codes", dtype="INT8", transpose=True, shape=(columns, rows))
    return _Weights(op.weight(f"{name}.{TRANSPOSED}", codes), _scales(op, name, base, rows), rows)


def _rows(op: Builder, recipe: Recipe, form: ChannelFormat) -> tuple[ir.Value, ir.Value]:
    """The table's codes int8 [V, H] and scales float32 [V]."""
    rows, columns = recipe.shape
    name = stacked_name(recipe.parts)
    base = replace(recipe, block=form.block(columns))
    codes = op.weight(f"{name}.{ROWS}", replace(base, component="codes", dtype="INT8"))
    return codes, _scales(op, name, base, rows)


def _scales(op: Builder, name: str, base: Recipe, rows: int) -> ir.Value:
    stored = replace(base, component="scales", dtype="FLOAT16", transpose=False, shape=(rows,))
    return op("Cast", op.weight(f"{name}.{SCALES}", stored), to=ir.DataType.FLOAT)
