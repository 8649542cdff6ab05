"""int8 keys and values: the copy of a graph without them, and the proof of their rounding.

    out, present = If(...)                  one operator a branch, on the same inputs (`passes.int8_cache`)
    out, present = GroupQueryAttention(q, k, v, past, ..., k_scale, v_scale)      or the operator alone

The exact copy has the operator on floats instead, its caches float32: it proves everything but the rounding of keys
and values. That is held to a model of it in numpy (:func:`measure_caches`): every code is the nearest on its scale to
what the shipped graph itself computed, and every result is attention over the codes. The scales, of which any would
pass that, are measured again from PyTorch on the source.
Letters: B batch, S new tokens, N heads, K KV heads, D head_dim, P past.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto

from lfm2export import contract
from lfm2export.kv_scales import CODES, KvScales
from lfm2export.runtime import CopyState, OnnxModel
from lfm2export.spec import ModelSpec
from lfm2export.steps import Mask, Tokens
from lfm2export.verify.figures import CachesMeasure, StepsMeasure
from lfm2export.verify.int8 import recorded_copy

ATTENTION = "GroupQueryAttention"

#: Attributes of the operator that say how caches are quantized.
_TYPES = ("k_quant_type", "v_quant_type", "kv_cache_bit_width")

#: Inputs of the operator on float caches.
_FLOAT_INPUTS = 7

#: Tokens of the steps that are measured: the two branches, each with a past and without, and one token.
STEPS = (24, 12, 3, 1)

#: How near to the middle between two codes a value may lie to be either: the operator and numpy divide alike, but for
#: the last bit.
TIE = 1e-3


@dataclass(frozen=True)
class Int8Attention:
    """Names of one layer's values: the operator's float inputs, and its result [B, S, N * D]."""

    layer: int
    query: str
    key: str
    value: str
    result: str


def has_int8_caches(model: onnx.ModelProto) -> bool:
    return any(value.type.tensor_type.elem_type == TensorProto.INT8 for value in model.graph.input)


def int8_attentions(graph: GraphProto, spec: ModelSpec) -> list[Int8Attention]:
    """Every attention of `graph` on int8 caches that has one of the two forms above."""
    layers = {contract.past_key_value(layer, "key"): layer for layer in spec.attention_layers}
    found = []
    for node in graph.node:
        operator = _operator(node)
        if operator is not None and operator.input[3] in layers:
            query, key, value = operator.input[:3]
            found.append(Int8Attention(layers[operator.input[3]], query, key, value, node.output[0]))
    return found


def float_caches(graph: GraphProto) -> None:
    """Rewrite every such attention of `graph`, and its caches, to float32, in place."""
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.INT8:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in graph.node:
        operator = _operator(node)
        if operator is None:
            continue
        plain = NodeProto()
        plain.CopyFrom(operator)
        plain.name = node.name
        del plain.input[_FLOAT_INPUTS:], plain.output[:], plain.attribute[:]
        plain.output.extend(node.output)
        plain.attribute.extend(attribute for attribute in operator.attribute if attribute.name not in _TYPES)
        node.CopyFrom(plain)


def _operator(node: NodeProto) -> NodeProto | None:
    """The operator on int8 caches that `node` is, or that its branch of few tokens consists of."""
    if node.op_type == "If":
        branch = next((attribute.g for attribute in node.attribute if attribute.name == "else_branch"), None)
        return _operator(branch.node[0]) if branch is not None and len(branch.node) == 1 else None
    quantized = any(attribute.name in _TYPES and attribute.s not in (b"", b"NONE") for attribute in node.attribute)
    return node if node.op_type == ATTENTION and quantized and len(node.input) > _FLOAT_INPUTS else None


def recorded_names(attentions: Sequence[Int8Attention]) -> tuple[str, ...]:
    """What each of them reads and makes, each name once."""
    return tuple(dict.fromkeys(name for one in attentions for name in (one.query, one.key, one.value, one.result)))


def recording_copy(model: onnx.ModelProto, attentions: Sequence[Int8Attention]) -> bytes:
    """A copy of `model` that gives those too."""
    content: bytes = recorded_copy(model, recorded_names(attentions)).SerializeToString()
    return content


def compare_scales(model: OnnxModel, measured: KvScales) -> dict[str, Any]:
    """How far the file's scales are at most from those `measured`, and where, as fields of `CachesMeasure`."""
    worst, where = 0.0, None
    for cache, held in zip(model.contract.caches, model.scales, strict=True):
        if held is None or cache.kind == "conv":
            continue
        layer = measured.layers[cache.layer]
        wanted = layer.key if cache.kind == "key" else layer.value
        share = np.nan_to_num(np.abs(held[0, :, 0] / wanted - 1), nan=np.inf)
        if share.max() > worst:
            head, channel = np.unravel_index(int(share.argmax()), share.shape)
            worst = float(share.max())
            where = f"{cache.present.name}, head {int(head)}, channel {int(channel)}"
    return {"scales_off": worst, "scale": where}


def worst_shares(steps: StepsMeasure) -> dict[str, Any]:
    """How far caches are at most from the reference's, as shares of their magnitudes, as fields of `CachesMeasure`."""
    shares = [
        (got / scale, cache, f"{cache.tensor}, prompt {point.prompt}, step {point.step}")
        for cache in steps.caches
        for got, scale, point in zip(cache.max_abs, cache.scales, steps.points, strict=True)
        if scale
    ]
    first = min(cache.layer for cache in steps.caches if cache.kind != "conv")
    judged = [(share, where) for share, cache, where in shares if cache.kind != "conv" and cache.layer == first]
    share, where = max(judged, default=(0.0, None))
    return {"share": share, "share_of": where, "share_all": max((share for share, *_ in shares), default=0.0)}


def measure_caches(
    model: OnnxModel, attentions: Sequence[Int8Attention], tokens: Sequence[int], rows: tuple[Tokens, Mask]
) -> CachesMeasure:
    """Every layer in steps of one row, and at the prefill of padded `rows` and the step after it.

    tokens: repeated to as many as the steps take.

    Raises:
        StepError: the runtime fails.
    """
    wrong, codes, worst = 0, 0, 0.0
    first: str | None = None
    where: str | None = None
    for before, after, mask, values in _steps(model, tokens, rows):
        for one in attentions:
            scales = _of_layer(model, one.layer, model.scales)
            compared = _compare(model.spec, one, values, scales, _of_layer(model, one.layer, before.caches),
                                _of_layer(model, one.layer, after.caches), before.lengths, mask)  # fmt: skip
            place = f"layer {one.layer}, {mask.shape[1]} tokens after {int(before.lengths.max(initial=0))}"
            codes += compared.codes
            if compared.wrong:
                wrong += compared.wrong
                first = first or f"{compared.first}, {place}"
            if not compared.worst <= worst:
                worst, where = compared.worst, f"{one.result}, {place}"
    return CachesMeasure(codes=codes, wrong=wrong, first=first, worst=worst, where=where)


def _steps(
    model: OnnxModel, tokens: Sequence[int], rows: tuple[Tokens, Mask]
) -> Iterator[tuple[CopyState, CopyState, Mask, Mapping[str, NDArray[Any]]]]:
    """(state before, state after, mask [B, S] of the new tokens, recorded values) of each step."""
    line = np.resize(np.array(tokens, np.int64), sum(STEPS))
    state, start = model.new_state(1), 0
    for size in STEPS:
        part = line[None, start : start + size]
        values = model.record(part, state)
        _, after = model.step(part, state)
        yield state, after, np.ones_like(part), values
        state, start = after, start + size
    ids, mask = rows
    state = model.new_state(len(ids))
    for part, given in ((ids, mask), (ids[:, :1], np.ones((len(ids), 1), np.int64))):
        first = state.mask.shape[1] == 0
        values = model.record(part, state, given if first else None)
        _, after = model.step(part, state, given if first else None)
        yield state, after, given, values
        state = after


@dataclass(frozen=True)
class _Compared:
    codes: int
    wrong: int
    first: str | None
    worst: float


def _compare(
    spec: ModelSpec,
    one: Int8Attention,
    values: Mapping[str, NDArray[Any]],
    scales: Sequence[NDArray[Any]],
    before: Sequence[NDArray[Any]],
    after: Sequence[NDArray[Any]],
    lengths: Mask,
    mask: Mask,
) -> _Compared:
    """One layer at one step; before, after: codes of keys and of values, [B, K, P, D]."""
    wrong, count, worst = 0, 0, 0.0
    first: str | None = None
    for row, (past, new) in enumerate(zip(lengths.tolist(), mask.sum(axis=1).tolist(), strict=True)):
        held = []
        for kind, name, scale, old, kept in zip(("key", "value"), (one.key, one.value), scales, before, after,
                                               strict=True):  # fmt: skip
            with np.errstate(divide="ignore", invalid="ignore"):  # a scale of zero gives what no code is near to
                fresh = _by_head(values[name][row, :new], spec.num_key_value_heads) / scale[0]
            got = kept[row, :, : past + new].astype(np.float64)
            bad = _not_nearest(got[:, past:], fresh)
            bad_past = got[:, :past] != old[row, :, :past]
            count += got.size
            wrong += int(bad.sum()) + int(bad_past.sum())
            if first is None and (bad.any() or bad_past.any()):
                first = f"a code of {kind}s" + (" that were held before" if bad_past.any() else "")
            held.append(got * scale[0].astype(np.float64))
        query = _by_head(values[one.query][row, :new], spec.num_attention_heads)
        wanted = _attention(query, held[0], held[1], past)
        found = values[one.result][row, :new]
        share = np.abs(found - wanted) / max(float(np.abs(wanted).max(initial=0)), 1e-30)
        worst = max(worst, float(np.nan_to_num(share, nan=np.inf).max(initial=0)))
    return _Compared(count, wrong, first, worst)


def _of_layer(model: OnnxModel, layer: int, values: Sequence[Any]) -> tuple[Any, Any]:
    """Of values by cache, those of the keys and of the values of `layer`."""
    key, value = (held for cache, held in zip(model.contract.caches, values, strict=True)
                  if cache.layer == layer)  # fmt: skip
    return key, value


def _by_head(flat: NDArray[Any], heads: int) -> NDArray[np.float64]:
    """[S, heads * D] -> [heads, S, D]."""
    return flat.astype(np.float64).reshape(len(flat), heads, -1).transpose(1, 0, 2)


def _not_nearest(codes: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which codes are not the integer nearest to what was `wanted`, limited to what a code may be; NaN is not."""
    limited = np.clip(wanted, *CODES)
    return ~(np.abs(codes - limited) <= 0.5 + TIE)


def _attention(
    query: NDArray[np.float64], keys: NDArray[np.float64], values: NDArray[np.float64], past: int
) -> NDArray[np.float64]:
    """query [N, S, D], keys and values [K, P + S, D] -> [S, N * D]: causal, scaled by 1 / sqrt(D)."""
    shares = len(query) // len(keys)
    keys, values = np.repeat(keys, shares, axis=0), np.repeat(values, shares, axis=0)
    scores = query @ keys.transpose(0, 2, 1) / np.sqrt(query.shape[2])
    visible = np.arange(keys.shape[1])[None] <= past + np.arange(query.shape[1])[:, None]
    scores = np.where(visible, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed: NDArray[np.float64] = (weights @ values).transpose(1, 0, 2).reshape(query.shape[1], -1)
    return mixed
