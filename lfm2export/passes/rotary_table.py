"""Rotary rows looked up: sines and cosines of all positions, which every runtime folds when it loads the file.

    positions - Reshape [B*S, 1] - Cast - angles [B*S, D/2] - into [-pi, pi] -+- Sin - sin rows
                                                                              +- Cos - cos rows
    x, places 0 .. B*S-1 as [B, S], cos rows, sin rows --- RotaryEmbedding --- y
                                      ->
    0 .. positions there are - Reshape - Cast - angles [max, D/2] -+- Sin - sin table      (no input: constants)
                                                                   +- Cos - cos table
    x, positions [B, S], cos table, sin table --- RotaryEmbedding --- y

Once an attention layer. The file is no larger; memory is, by D * 4 bytes a position (33 MB for 128,000), and a step has
ten kernels less, which is what small models are bound by on a GPU. Angles need no reduction where they are folded: the
processor's sine is exact to 1.1e-7 at 131,072 radians (onnxruntime 1.22, 1.32 and wasm). A position behind the model's
last one is an error.
"""

from __future__ import annotations

import onnx_ir as ir

from lfm2export.passes.matching import Builder, Firing, expect, require, rewrite
from lfm2export.spec import ModelSpec

#: Positions of the longest table. One for each of a context of 2**28, which a config may state, would take 69 GB.
MOST_POSITIONS = 1 << 17


def expected(spec: ModelSpec) -> int:
    return len(spec.attention_layers) if spec.max_position_embeddings <= MOST_POSITIONS else 0


def fuse(model: ir.Model, spec: ModelSpec) -> Firing:
    if spec.max_position_embeddings > MOST_POSITIONS:
        return Firing(0, [])
    tables: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}

    def attempt(node: ir.Node, op: Builder) -> None:
        places, cosines, sines = node.inputs[1:4]
        positions = expect(expect(expect(places, "Reshape").inputs[0], "Range").inputs[1], "Size").inputs[0]
        angle = expect(cosines, "Cos").inputs[0]
        require(expect(sines, "Sin").inputs[0] is angle, "cosine and sine are of different angles")
        product = _product(angle)
        column = expect(expect(product.inputs[0], "Cast").inputs[0], "Reshape")
        require(column.inputs[0] is positions, "the angles are not those of the positions")
        frequencies = product.inputs[1]
        assert frequencies is not None
        if frequencies not in tables:
            steps = op("Range", op.scalar_int(0), op.scalar_int(spec.max_position_embeddings), op.scalar_int(1))
            rows = op("Cast", op("Reshape", steps, op.constant([-1, 1])), to=ir.DataType.FLOAT)
            angles = op("Mul", rows, frequencies)
            tables[frequencies] = op("Cos", angles), op("Sin", angles)
        for number, value in enumerate((positions, *tables[frequencies]), start=1):
            node.replace_input_with(number, value)

    return rewrite(model, "RotaryEmbedding", attempt)


def _product(reduced: ir.Value | None) -> ir.Node:
    """positions * frequencies, under the reduction to one turn that `rotary` writes."""
    return expect(expect(expect(reduced, "Sub").inputs[0], "Sub").inputs[0], "Mul")
