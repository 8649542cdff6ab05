"""Sources, recipes and models for the tests of the writer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from lfm2export import pieces, writer
from lfm2export.contract import IR_VERSION, MICROSOFT_OPSET, OPSET
from lfm2export.quant import quantize
from lfm2export.quant.blocks import signed
from lfm2export.weights import RECIPE, BlockFormat, ChannelFormat, QuantizedBlocks, Recipe

Matrix = NDArray[np.float32]
Q4 = BlockFormat(4, 32, symmetric=False)
CHANNEL = ChannelFormat().block(72)


@dataclass
class Source:
    """A checkpoint in memory; `before` runs ahead of every read, `blocks` are matrices quantized beforehand."""

    tensors: dict[str, Matrix]
    before: Callable[[str, int], None] = field(default=lambda name, start: None)
    blocks: dict[str, QuantizedBlocks] = field(default_factory=dict)

    def rows(self, name: str, start: int, stop: int) -> Matrix:
        self.before(name, start)
        return self.tensors[name][start:stop].copy()

    def prepared(self, name: str, start: int, stop: int, format: BlockFormat) -> QuantizedBlocks | None:
        blocks = self.blocks.get(name)
        if blocks is None:
            return None
        zeros = None if blocks.zero_points is None else blocks.zero_points[start:stop]
        return QuantizedBlocks(blocks.codes[start:stop], blocks.scales[start:stop], zeros)


def gaussian(*shape: int, seed: int = 0) -> Matrix:
    return np.random.default_rng((seed, *shape)).standard_normal(shape, dtype=np.float32)


def quantized(name: str, parts: tuple[str, ...], rows: int, columns: int, format: BlockFormat) -> dict[str, Recipe]:
    """The recipes of one quantized matrix."""
    blocks = format.blocks(columns)
    recipe = functools.partial(Recipe, parts, block=format)
    code_shape = (rows, blocks, format.block_size * format.bits // 8)
    found = {
        f"{name}.codes": recipe(code_shape, "UINT8", component="codes"),
        f"{name}.scales": recipe((rows, blocks), "FLOAT16", component="scales"),
    }
    if not format.symmetric:
        shape = (rows, -(-blocks * format.bits // 8))
        found[f"{name}.zero_points"] = recipe(shape, "UINT8", component="zero_points")
    return found


def model_of(recipes: dict[str, Recipe], nodes: list[ir.Node] | None = None, **ends: list[ir.Value]) -> ir.Model:
    """A model with these initializers, and one small constant."""
    values = [node_input for node in nodes or [] for node_input in node.inputs if node_input is not None]
    by_name = {value.name: value for value in values}
    constant = by_name.get("constant") or ir.Value(name="constant")
    constant.const_value = ir.tensor(np.array([3, 1, 2], np.int64), name="constant")
    initializers = [constant]
    for name, recipe in recipes.items():
        value = by_name.get(name) or ir.Value(name=name)
        value.meta[RECIPE] = recipe
        initializers.append(value)
    opsets = {"": OPSET, "com.microsoft": MICROSOFT_OPSET}
    inputs, outputs = ends.get("inputs", []), ends.get("outputs", [])
    graph = ir.Graph(
        inputs, outputs, nodes=nodes or [], initializers=initializers, name="written", opset_imports=opsets
    )
    return ir.Model(graph, ir_version=IR_VERSION)


def every_kind() -> tuple[Source, dict[str, Recipe], dict[str, NDArray[Any]]]:
    """(source, recipes, expected values) of one initializer of each kind."""
    a, b, conv, norm = gaussian(40, 72), gaussian(24, 72), gaussian(40, 1, 3), gaussian(72)
    stack = np.concatenate([a, b])
    blocks = quantize(stack, Q4)
    recipes = {
        "norm": Recipe(("norm",), (72,)),
        "conv": Recipe(("conv",), (40, 3)),
        "dense": Recipe(("a", "b"), (64, 72)),
        "dense.half": Recipe(("a",), (40, 72), "FLOAT16"),
        "transposed": Recipe(("a", "b"), (64, 72)).transposed(),
        "transposed.half": Recipe(("a", "b"), (72, 64), "FLOAT16", transpose=True),
        **quantized("q", ("a", "b"), 64, 72, Q4),
        "c.int8": Recipe(("a", "b"), (72, 69), "INT8", transpose=True, block=CHANNEL, component="codes", padding=5),
        "c.channel_scales": Recipe(("a", "b"), (69,), "FLOAT16", block=CHANNEL, component="scales", padding=5),
        "r.int8_rows": Recipe(("b",), (27, 72), "INT8", block=CHANNEL, component="codes", padding=3),
    }
    channels, rows = quantize(stack, CHANNEL), quantize(b, CHANNEL)
    assert blocks.zero_points is not None
    expected: dict[str, NDArray[Any]] = {
        "norm": norm,
        "conv": conv.reshape(40, 3),
        "dense": stack,
        "dense.half": a.astype(np.float16),
        "transposed": stack.T,
        "transposed.half": stack.T.astype(np.float16),
        "q.codes": blocks.codes,
        "q.scales": blocks.scales,
        "q.zero_points": blocks.zero_points,
        "c.int8": np.pad(signed(channels.codes), ((0, 5), (0, 0))).T,
        "c.channel_scales": np.pad(channels.scales.reshape(-1), (0, 5)),
        "r.int8_rows": np.pad(signed(rows.codes), ((0, 3), (0, 0))),
        "constant": np.array([3, 1, 2], np.int64),
    }
    return Source({"a": a, "b": b, "conv": conv, "norm": norm}), recipes, expected


def small_pieces(monkeypatch: pytest.MonkeyPatch, nbytes: int) -> None:
    monkeypatch.setattr(writer, "cut", functools.partial(pieces.cut, piece_bytes=nbytes))
