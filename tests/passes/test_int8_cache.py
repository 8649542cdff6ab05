"""int8 keys and values in the graph: both branches against the operator on floats, and what is put around them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from graphs import SPEC
from lfm2export.contract import MICROSOFT
from lfm2export.errors import GraphError
from lfm2export.kv_scales import KvScales, LayerScales
from lfm2export.passes import Pass, int8_cache, naming, run
from lfm2export.passes.int8_cache import FEW
from lfm2export.spec import FULL_ATTENTION, ModelSpec

N, K, D = SPEC.num_attention_heads, SPEC.num_key_value_heads, SPEC.head_dim
ONE_LAYER = replace(SPEC, layer_types=(FULL_ATTENTION,))

TEXT = f"""
<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
attend (int64[batch_size, sequence_length] input_ids, float[B, S, {N * D}] query, float[B, S, {K * D}] new_key,
        float[B, S, {K * D}] new_value, float[B, {K}, P, {D}] "past_key_values.0.key",
        float[B, {K}, P, {D}] "past_key_values.0.value", int32[B] seqlens, int32[1] total)
    => (float[B, S, {N * D}] out, float[B, {K}, T, {D}] "present.0.key", float[B, {K}, T, {D}] "present.0.value")
{{
    out, "present.0.key", "present.0.value" = com.microsoft.GroupQueryAttention
        <num_heads = {N}, kv_num_heads = {K}, scale = 0.4> (
        query, new_key, new_value, "past_key_values.0.key", "past_key_values.0.value", seqlens, total)
}}
"""

Arrays = dict[str, NDArray[np.generic]]


def scales(spec: ModelSpec = ONE_LAYER) -> KvScales:
    random = np.random.default_rng(5)

    def one() -> NDArray[np.float32]:
        return random.uniform(0.01, 0.05, (K, D)).astype(np.float32)

    return KvScales({layer: LayerScales(one(), one()) for layer in spec.attention_layers}, "text", None, 1)


def plain() -> onnx.ModelProto:
    return onnx.parser.parse_model(TEXT)


def rewritten() -> onnx.ModelProto:
    model = ir.from_proto(plain())
    steps = [
        Pass("int8_cache", int8_cache.fuse_with(scales()), int8_cache.expected),
        Pass("naming", naming.fuse, naming.expected),
    ]
    assert run(model, ONE_LAYER, steps)["int8_cache"] == 1
    return ir.to_proto(model)


def computed(model: onnx.ModelProto, feeds: Arrays) -> list[NDArray[np.generic]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[NDArray[np.generic]] = session.run(None, feeds)
    return found


def feeds(new: int, past: int, rows: int = 1) -> Arrays:
    random = np.random.default_rng(new + past)

    def normal(heads: int) -> NDArray[np.float32]:
        return random.normal(size=(rows, new, heads * D)).astype(np.float32)

    def codes() -> NDArray[np.int8]:
        return random.integers(-128, 128, (rows, K, past, D)).astype(np.int8)

    return {
        "input_ids": np.zeros((rows, new), np.int64),
        "query": normal(N),
        "new_key": normal(K),
        "new_value": 3 * normal(K),  # some are beyond the largest code
        "past_key_values.0.key": codes(),
        "past_key_values.0.value": codes(),
        "seqlens": np.full(rows, past + new - 1, np.int32),
        "total": np.array([past + new], np.int32),
    }


def on_floats(given: Arrays) -> Arrays:
    """What the operator on floats is to be given: all that is held is a code times its scale."""
    held = scales().layers[0]
    found = dict(given)
    for name, scale in (("key", held.key), ("value", held.value)):
        new = given[f"new_{name}"].reshape(-1, K, D)
        codes = np.clip(np.rint(new / scale), -128, 127)
        found[f"new_{name}"] = (codes * scale).reshape(given[f"new_{name}"].shape).astype(np.float32)
        past = given[f"past_key_values.0.{name}"].astype(np.float32)
        found[f"past_key_values.0.{name}"] = past * scale[None, :, None]
    return found


@pytest.mark.parametrize(("new", "past"), [(1, 0), (1, 30), (3, 7), (FEW, 20), (FEW + 1, 0), (FEW + 1, 20), (40, 0)])
def test_either_branch_is_attention_over_codes(new: int, past: int) -> None:
    given = feeds(new, past)
    out, *codes = computed(rewritten(), given)
    wanted, *floats = computed(plain(), {k: v for k, v in on_floats(given).items()})
    np.testing.assert_allclose(out, wanted, atol=2e-5 * np.abs(wanted).max(), rtol=0)
    held = scales().layers[0]
    for got, expected, scale in zip(codes, floats, (held.key, held.value), strict=True):
        assert got.dtype == np.int8
        np.testing.assert_allclose(got * scale[None, :, None], expected, atol=1e-6)


def test_rows_of_a_batch_are_their_own() -> None:
    given = feeds(12, 0, rows=2)
    given["seqlens"] = np.array([11, 4], np.int32)
    out, keys, _ = computed(rewritten(), given)
    alone = {name: value[1:, :5] if value.ndim > 1 else value for name, value in given.items()}
    alone |= {"seqlens": np.array([4], np.int32), "total": np.array([5], np.int32)}
    alone |= {name: given[name][1:] for name in ("past_key_values.0.key", "past_key_values.0.value")}
    one, one_keys, _ = computed(rewritten(), alone)
    np.testing.assert_allclose(out[1:, :5], one, atol=1e-5)
    np.testing.assert_array_equal(keys[1:, :, :5], one_keys)


def test_scales_keep_their_names_and_every_node_has_one() -> None:
    graph = rewritten().graph
    held = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for kind in ("key", "value"):
        assert held[f"past_key_values.0.{kind}.scale"] == (1, K, 1, D)
    branches = [attribute.g for node in graph.node if node.op_type == "If" for attribute in node.attribute]
    nodes = [*graph.node, *(node for branch in branches for node in branch.node)]
    assert len(branches) == 2 and len({node.name for node in nodes}) == len(nodes)
    made = [name for node in nodes for name in node.output if name]
    assert len(set(made)) == len(made)
    (step,) = next(branch.node for branch in branches if len(branch.node) == 1)
    types = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in step.attribute}
    assert step.domain == MICROSOFT
    assert (types["k_quant_type"], types["v_quant_type"]) == (b"PER_CHANNEL", b"PER_CHANNEL")
    assert list(step.input[-2:]) == ["past_key_values.0.key.scale", "past_key_values.0.value.scale"]


def test_a_cache_that_is_not_the_contracts_is_refused() -> None:
    model = ir.from_proto(onnx.parser.parse_model(TEXT.replace("past_key_values.0.key", "cache.0.key")))
    step = Pass("int8_cache", int8_cache.fuse_with(scales()), int8_cache.expected)
    with pytest.raises(GraphError, match="its past is no cache of the contract"):
        run(model, ONE_LAYER, [step])
