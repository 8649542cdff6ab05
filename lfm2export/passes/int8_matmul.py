"""8 bits at work (W8A8): weights int8 with a scale per output channel, activations uint8 with a scale per token.

    x [B, S, K], W [K, N] - MatMul - y      ->

    x - Flatten [M, K] -+--------------------------------- QuantizeLinear(axis 0) - q uint8 [M, K], M = B S
                        `- Abs - ReduceMax - Mul(1/127) - s [M, 1] - Squeeze -'    zero point 128 each
    q, W int8 - MatMulIntegerToFloat(zero point 128, channel scales [N]) - Slice - Mul(s) - Reshape - y [B, S, N]

    ids - Gather(table int8), Gather(scales) - Cast, Mul - embedding
    x - ... - MatMulIntegerToFloat(q, Transpose(table)) - Slice - Mul(s) - Reshape - logits

A scale belongs to one token, never to the tensor: what a row of a batch, a chunk of a prompt or a padded row computes
does not depend on its neighbours. Products that read one value share its rounding. Where a product is split, its parts
take s themselves, or leave it to a later one (`passes.int8_scales`). A token of zeros has s = 0: its codes are whatever
0/0 rounds to, and its results zeros times s.

The form is the one that is fast on every runtime: onnxruntime's wasm has no kernel for MatMulNBits (every product
dequantizes its whole matrix), and its products are fast for uint8 by int8 without zero points of the weights only. They
read a matrix in panels of 128 rows, which push each other out of the cache where rows lie a multiple of 512 bytes
apart: 64 columns of zeros (`ChannelFormat.padding`) make products of a token 1.2 to 1.3 times as fast there, the head
twice. They are cut off where a product is split, or by Slice, which costs a native prompt less than can be measured.

Milliseconds of a prompt of 128 tokens at 350M, 2 threads of a Zen 5, in turns in one process (50 of them in the
products): MatMulInteger, Cast and a Mul by channels and one by tokens 92; DequantizeLinear by tokens and a Mul by
channels 89; this form with a Mul by tokens after every product 84; this 83. QuantizeLinear with a scale per row is 1.3
times as fast as Div, Round, Add and Cast. A tied table is stored once, as rows; the runtime folds the head's transposed
form while it loads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from lfm2export import contract
from lfm2export.contract import MICROSOFT, LogitsMode
from lfm2export.passes import int8_scales
from lfm2export.passes.int8_scales import Sums, Weights
from lfm2export.passes.matching import Builder, Firing, NoMatch, expect, recipe_of, rewrite
from lfm2export.recipes import TABLES
from lfm2export.spec import ModelSpec
from lfm2export.weights import ChannelFormat, Recipe, stacked_name

#: Codes of activations lie symmetrically around it, from 1 to 255.
ZERO_POINT = 128
LARGEST_CODE = 127

#: Suffixes of initializers: int8 codes as the operator multiplies by them [in, out], or as rows [out, in].
TRANSPOSED, ROWS, SCALES = "int8", "int8_rows", "channel_scales"


def projections_pass(form: ChannelFormat, logits: LogitsMode) -> Callable[[ir.Model, ModelSpec], Firing]:
    """Every MatMul with a weight but the head's."""

    def fuse(model: ir.Model, spec: ModelSpec) -> Firing:
        owed: dict[ir.Node, Sums] = {}

        def attempt(node: ir.Node, op: Builder) -> None:
            recipe = recipe_of(node.inputs[1])
            if recipe.parts[0] in TABLES:
                raise NoMatch("the head is read with the table")
            last = logits == "last" and _reads_last_tokens(recipe.parts[0], spec)
            split, debt = int8_scales.only_split(node.outputs[0]), owed.pop(node, None)
            weights = _transposed(op, recipe, form)
            leading = debt.leading if debt is not None else _leading(op, node.inputs[0], last=last)
            sums = multiply(op, node.inputs[0], weights, leading)
            if debt is not None:
                sums = replace(sums, scale=op("Mul", sums.scale, debt.scale))
            if split is None:
                op.replace(node.outputs[0], sums.product(op))
            else:
                owed.update(int8_scales.scale_parts(op, sums, split))

        return rewrite(model, "MatMul", attempt)

    return fuse


def table_pass(form: ChannelFormat, logits: LogitsMode) -> Callable[[ir.Model, ModelSpec], Firing]:
    """The embedding lookup and the head: one matrix if tied, two if not."""

    def fuse(model: ir.Model, spec: ModelSpec) -> Firing:
        def look_up(node: ir.Node, op: Builder) -> None:
            codes, scales = _rows(op, recipe_of(node.inputs[0]), form, padded=spec.tie_word_embeddings)
            values = op("Cast", op("Gather", codes, node.inputs[1], axis=0), to=ir.DataType.FLOAT)
            row_scales = op("Unsqueeze", op("Gather", scales, node.inputs[1], axis=0), op.constant([2]))
            op.replace(node.outputs[0], op("Mul", values, row_scales))

        def head(node: ir.Node, op: Builder) -> None:
            recipe = recipe_of(node.inputs[1])
            if node.op_type == "Gemm":
                x = expect(node.inputs[0], "Reshape").inputs[0]
                out = next(iter(node.outputs[0].consumers())).outputs[0]
                codes, scales = _rows(op, recipe, form, padded=True)
                rows = recipe.shape[0]
                weights = Weights(op("Transpose", codes, perm=[1, 0]), scales, rows, form.padding(rows))
            else:
                x, out = node.inputs[0], node.outputs[0]
                weights = _transposed(op, recipe, form)
            leading = _leading(op, x, last=logits == "last")
            op.replace(out, multiply(op, x, weights, leading).product(op))

        firing = rewrite(model, "Gather", look_up)
        heads = rewrite(model, "Gemm" if spec.tie_word_embeddings else "MatMul", head)
        return Firing(firing.count + heads.count, firing.refusals + heads.refusals)

    return fuse


def _leading(op: Builder, x: ir.Value | None, *, last: bool) -> ir.Value:
    """(B, S) of x [B, S, K], int64 [2]; last: x holds the last token of each row, where others hold every new token.

    What follows from the number of tokens alone is computed once for all products of every token.
    """
    ids = next(value for value in op.graph.inputs if value.name == contract.INPUT_IDS)
    return op("Shape", x, end=2) if last else op("Shape", ids)


def multiply(op: Builder, x: ir.Value | None, weights: Weights, leading: ir.Value) -> Sums:
    """x [B, S, K] or [M, K] times the weights; leading is (B, S)."""
    codes, scale = _rounded(op, x, op("ReduceProd", leading, keepdims=1))
    one, zero = op.constant(np.array(1, np.float32)), op.constant(np.array(ZERO_POINT, np.uint8))
    values = op("MatMulIntegerToFloat", codes, weights.codes, one, weights.scales, zero, domain=MICROSOFT)
    return Sums(values, scale, leading, weights)


def _rounded(op: Builder, x: ir.Value | None, tokens: ir.Value) -> tuple[ir.Value, ir.Value]:
    """x -> codes uint8 [M, K] and scales float32 [M, 1]; `tokens` is [M]. Equal ones merge after the pass."""
    rows = x if int8_scales.is_flat(x) else op("Flatten", x, axis=2)
    largest = op("ReduceMax", op("Abs", rows), op.constant([1]), keepdims=1)
    scale = op("Mul", largest, op.constant(np.array(1 / LARGEST_CODE, np.float32)))
    # Not Expand: WebGPU has a kernel for it that cannot take uint8.
    zeros = op("ConstantOfShape", tokens, value=ir.tensor(np.array([ZERO_POINT], np.uint8)))
    return op("QuantizeLinear", rows, op("Squeeze", scale, op.constant([1])), zeros, axis=0), scale


def _reads_last_tokens(part: str, spec: ModelSpec) -> bool:
    """Whether `passes.last_token` left only the last token of each row to the matrix of `part`."""
    first = (".in_proj.", ".q_proj.", ".k_proj.", ".v_proj.")
    return part.startswith(f"model.layers.{spec.num_hidden_layers - 1}.") and not any(name in part for name in first)


def _transposed(op: Builder, recipe: Recipe, form: ChannelFormat) -> Weights:
    """`recipe`, a matrix stored either way round, as [in, out]."""
    rows, columns = recipe.shape if not recipe.transpose else recipe.shape[::-1]
    padding = form.padding(rows)
    name = stacked_name(recipe.parts)
    base = replace(recipe, block=form.block(columns), padding=padding)
    codes = replace(base, component="codes", dtype="INT8", transpose=True, shape=(columns, rows + padding))
    return Weights(op.weight(f"{name}.{TRANSPOSED}", codes), _scales(op, name, base, rows + padding), rows, padding)


def _rows(op: Builder, recipe: Recipe, form: ChannelFormat, *, padded: bool) -> tuple[ir.Value, ir.Value]:
    """The table's codes int8 [V, H] and scales float32 [V]; padded: where the head is their transposed form."""
    rows, columns = recipe.shape
    padding = form.padding(rows) if padded else 0
    name = stacked_name(recipe.parts)
    base = replace(recipe, block=form.block(columns), shape=(rows + padding, columns), padding=padding)
    codes = op.weight(f"{name}.{ROWS}", replace(base, component="codes", dtype="INT8"))
    return codes, _scales(op, name, base, rows + padding)


def _scales(op: Builder, name: str, base: Recipe, rows: int) -> ir.Value:
    stored = replace(base, component="scales", dtype="FLOAT16", transpose=False, shape=(rows,))
    return op("Cast", op.weight(f"{name}.{SCALES}", stored), to=ir.DataType.FLOAT)
