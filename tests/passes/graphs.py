"""Tiny graphs for the tests of passes: ONNX text in, numbers out.

A weight is declared as one more graph input of the text and named in `weights`; it becomes an initializer without
values, with the recipe that the tracer would give it. `evaluate` fills recipes with arrays and runs onnxruntime with
its optimizations off.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from lfm2export.passes.matching import Firing, remove_dead
from lfm2export.quant import quantize
from lfm2export.quant.blocks import signed
from lfm2export.spec import CONV, FULL_ATTENTION, ModelSpec
from lfm2export.weights import RECIPE, BlockFormat, QuantizedBlocks, Recipe

Array = NDArray[Any]
Feeds = Mapping[str, Array]
Fuse = Callable[[ir.Model, ModelSpec], Firing]

HEADER = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>\n'

#: H 32, F 48, N 4, K 2, D 8, L 3, V 40; one layer of each kind.
SPEC = ModelSpec(
    vocab_size=40,
    hidden_size=32,
    intermediate_size=48,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    conv_L_cache=3,
    conv_bias=False,
    layer_types=(CONV, FULL_ATTENTION),
    tie_word_embeddings=True,
    norm_eps=1e-5,
    rope_theta=1e6,
    max_position_embeddings=256,
)


@dataclass(frozen=True)
class Checkpoint:
    """Weights by name: small, deterministic, none of them 0 or 1. A source of recipes, as a checkpoint is."""

    tensors: Mapping[str, NDArray[np.float32]]

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        return self.tensors[name][start:stop].copy()

    def prepared(self, name: str, start: int, stop: int, format: BlockFormat) -> QuantizedBlocks | None:
        return None


def numbers(name: str, *shape: int) -> NDArray[np.float32]:
    """Gaussian values that depend on name and shape alone."""
    return np.random.default_rng((zlib.crc32(name.encode()), *shape)).standard_normal(shape, dtype=np.float32)


def weight(name: str, shape: Sequence[int]) -> NDArray[np.float32]:
    """Gaussian: around 1 for a norm's vector, scaled by the row's length for all else."""
    values = numbers(name, *shape)
    if len(shape) == 1 and "bias" not in name:
        return 1 + 0.3 * values
    return values / np.sqrt(np.float32(shape[-1]))


def checkpoint(tensors: Mapping[str, Sequence[int]]) -> Checkpoint:
    """A checkpoint with tensors of these names and shapes, such as `spec.source_tensors()`."""
    return Checkpoint({name: weight(name, shape) for name, shape in tensors.items()})


def parse(text: str, weights: Sequence[str] = ()) -> ir.Model:
    """The model of `text` (without its header); inputs named in `weights` become initializers with recipes."""
    model = ir.from_onnx_text(HEADER + text)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for value in [value for value in model.graph.inputs if value.name in weights]:
        model.graph.inputs.remove(value)
        shape = tuple(size for size in value.shape or () if isinstance(size, int))
        value.meta[RECIPE] = Recipe(parts=(str(value.name),), shape=shape)
        model.graph.initializers.add(value)
    return model


def edited(text: str, old: str, new: str) -> str:
    """`text` with every `old` replaced; it must be there."""
    assert old in text, old
    return text.replace(old, new)


def fire(model: ir.Model, fuse: Fuse, spec: ModelSpec = SPEC) -> Firing:
    """Run one pass as `passes.run` does."""
    firing = fuse(model, spec)
    remove_dead(model)
    return firing


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def recipes(model: ir.Model) -> dict[str, Recipe]:
    return {name: value.meta[RECIPE] for name, value in model.graph.initializers.items() if RECIPE in value.meta}


def array_of(recipe: Recipe, source: Checkpoint) -> Array:
    """What `writer` stores for `recipe`, whole and in memory."""
    stacked = np.concatenate([source.tensors[part] for part in recipe.parts])
    if recipe.block is not None:
        blocks = quantize(stacked, recipe.block)
        if recipe.dtype == "INT8":
            codes = np.pad(signed(blocks.codes), ((0, recipe.padding), (0, 0)))
            return np.ascontiguousarray(codes.T if recipe.transpose else codes)
        found = {"codes": blocks.codes, "scales": blocks.scales, "zero_points": blocks.zero_points}
        stored = found[recipe.component]
        assert stored is not None
        return np.pad(stored, ((0, recipe.padding), *[(0, 0)] * (stored.ndim - 1))).reshape(recipe.shape)
    if recipe.transpose:
        stacked = stacked.T
    return np.ascontiguousarray(stacked).reshape(recipe.shape).astype(ir.DataType[recipe.dtype].numpy())


def sources(model: ir.Model) -> Checkpoint:
    """A checkpoint with every tensor that the recipes of an unfused `model` name."""
    found = {}
    for recipe in recipes(model).values():
        assert recipe == Recipe(recipe.parts, recipe.shape) and len(recipe.parts) == 1
        found[recipe.parts[0]] = recipe.shape
    return checkpoint(found)


def session(model: ir.Model, source: Checkpoint) -> onnxruntime.InferenceSession:
    """A session of a copy of `model` with its recipes evaluated, optimizations off, one thread."""
    filled = model.clone()
    for name, recipe in recipes(filled).items():
        value = filled.graph.initializers[name]
        value.const_value = ir.tensor(array_of(recipe, source), name=name)
        assert value.dtype == value.const_value.dtype, name
    _fold_casts(filled)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    content = ir.to_proto(filled).SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _fold_casts(model: ir.Model) -> None:
    """Casts of initializers, the one thing that any session folds: of onnxruntime's CPU kernels, MatMulNBits at
    accuracy_level 4 gives zeros, without an error, when its scales are no initializer (1.32).
    """
    for node in model.graph:
        source = node.inputs[0] if node.op_type == "Cast" else None
        if source is not None and source.const_value is not None:
            dtype = ir.DataType(node.attributes["to"].as_int())
            tensor = ir.tensor(source.const_value.numpy().astype(dtype.numpy()), name=f"{source.name}.{dtype.name}")
            folded = ir.Value(name=tensor.name, shape=source.shape, type=ir.TensorType(dtype), const_value=tensor)
            model.graph.initializers.add(folded)
            node.outputs[0].replace_all_uses_with(folded)
    remove_dead(model)


def evaluate(model: ir.Model, feeds: Feeds, source: Checkpoint) -> dict[str, Array]:
    """Every output of `model`, by name."""
    running = session(model, source)
    names = [output.name for output in running.get_outputs()]
    return dict(zip(names, running.run(names, dict(feeds)), strict=True))


def assert_same_numbers(before: ir.Model, after: ir.Model, feeds: Feeds, *, atol: float) -> None:
    """Both give the same outputs, to `atol`; and these are numbers that mean something."""
    source = sources(before)
    expected, got = evaluate(before, feeds, source), evaluate(after, feeds, source)
    assert list(expected) == list(got)
    for name, values in expected.items():
        assert np.isfinite(values).all() and np.ptp(values) > 0.1, name
        np.testing.assert_allclose(got[name], values, atol=atol, rtol=0, err_msg=name)


def with_spec(**changes: Any) -> ModelSpec:
    return replace(SPEC, **changes)
