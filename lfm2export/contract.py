"""The graph contract as data: names, dtypes, axes and symbols of every input and output.

Tracer, packager, runtime and verifier import it; no other module spells these names. Transformers.js allocates the
first caches from the shapes written here: it knows `batch_size` by that exact spelling and takes 0 for any other
symbol, so hidden size, L_cache, KV heads and head_dim are integers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from lfm2export.spec import CONV, ModelSpec

Dim = int | str
LogitsMode = Literal["last", "all"]
CacheDtype = Literal["float32", "float16"]
KvCache = Literal["native", "int8"]

BATCH = "batch_size"
SEQUENCE = "sequence_length"
PAST = "past_sequence_length"
TOTAL = "total_sequence_length"

INPUT_IDS = "input_ids"
ATTENTION_MASK = "attention_mask"
POSITION_IDS = "position_ids"
LOGITS = "logits"

#: Which tokens of each row `--logits last` gives logits for, counted from the row's end: an initializer that is a graph
#: input besides, so that whoever feeds nothing gets the last token's. Runtimes list it apart from the inputs that must
#: be fed (onnxruntime: `get_overridable_initializers`), or take it for the constant that it is (OpenVINO). The logits
#: stay declared as one row: onnxruntime-genai allocates them by that, and onnxruntime lets more rows pass.
LOGITS_FROM_END = "logits_from_end"
LAST_TOKEN = (0,)
LOGITS_ROWS = "num_logits"

OPSET = 21
IR_VERSION = 10
#: The domain of the fused operators, and its version.
MICROSOFT = "com.microsoft"
MICROSOFT_OPSET = 1

#: numpy name of an element type -> its ONNX name.
ONNX_TYPES = {"int64": "INT64", "float32": "FLOAT", "float16": "FLOAT16", "int8": "INT8"}

#: A browser's ArrayBuffer holds 2,145,386,496 bytes at most; no chunk of external data is larger.
MAX_CHUNK_BYTES = 2_145_386_496

#: dtype on the command line -> file name in the artifact's onnx/ folder.
MODEL_FILES = {
    "fp32": "model.onnx",
    "fp16": "model_fp16.onnx",
    "q8": "model_quantized.onnx",
    "q4": "model_q4.onnx",
    "q4f16": "model_q4f16.onnx",
}

#: dtypes whose caches are float16.
HALF_DTYPES = ("fp16", "q4f16")

#: The first onnxruntime whose CPU kernel of GroupQueryAttention takes int8 keys and values; 1.26 fails at the second
#: step.
FIRST_INT8_RELEASE = (1, 27)

#: dtypes whose keys and values may be int8: those for CPUs. fp32 is the reference, and float16 files are for GPUs.
INT8_KV_DTYPES = ("q8", "q4")


@dataclass(frozen=True)
class Tensor:
    """One graph input or output: name, numpy dtype name, axes (an integer, or a symbol)."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class Cache:
    """One cache tensor: the input that carries the past and the output that returns the present, at `layer`."""

    layer: int
    kind: Literal["conv", "key", "value"]
    past: Tensor
    present: Tensor


@dataclass(frozen=True)
class Contract:
    """Inputs and outputs of the graph of `spec`, in order.

    overridable: initializers that may be fed, after the inputs that must be.
    """

    inputs: tuple[Tensor, ...]
    overridable: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    caches: tuple[Cache, ...]


def past_conv(layer: int) -> str:
    return f"past_conv.{layer}"


def present_conv(layer: int) -> str:
    return f"present_conv.{layer}"


def past_key_value(layer: int, kind: Literal["key", "value"]) -> str:
    return f"past_key_values.{layer}.{kind}"


def present_key_value(layer: int, kind: Literal["key", "value"]) -> str:
    return f"present.{layer}.{kind}"


def key_value_scale(layer: int, kind: Literal["key", "value"]) -> str:
    """The initializer, [1, K, 1, D], that int8 keys or values of `layer` are multiplied by."""
    return f"{past_key_value(layer, kind)}.scale"


def cache_dtype(dtype: str) -> CacheDtype:
    """Element type of the caches of an artifact file of this `dtype`."""
    return "float16" if dtype in HALF_DTYPES else "float32"


def held_kv_cache(inputs: Iterable[Tensor]) -> KvCache:
    """How a graph with these inputs holds keys and values."""
    return "int8" if any(tensor.dtype == "int8" for tensor in inputs) else "native"


def caches(spec: ModelSpec, dtype: CacheDtype, kv: KvCache = "native") -> tuple[Cache, ...]:
    """Every cache tensor in layer order; key before value.

    Conv states are [B, H, L]; keys and values are [B, K, P, D] in and [B, K, T, D] out, packed to the front of each
    row, of the type `dtype` or int8 codes (`key_value_scale`).
    """
    found: list[Cache] = []
    for layer, layer_type in enumerate(spec.layer_types):
        if layer_type == CONV:
            shape = (BATCH, spec.hidden_size, spec.conv_L_cache)
            past, present = Tensor(past_conv(layer), dtype, shape), Tensor(present_conv(layer), dtype, shape)
            found.append(Cache(layer, "conv", past, present))
            continue
        for kind in ("key", "value"):
            heads, size = spec.num_key_value_heads, spec.head_dim
            held = dtype if kv == "native" else "int8"
            past = Tensor(past_key_value(layer, kind), held, (BATCH, heads, PAST, size))
            present = Tensor(present_key_value(layer, kind), held, (BATCH, heads, TOTAL, size))
            found.append(Cache(layer, kind, past, present))
    return tuple(found)


def contract(
    spec: ModelSpec, dtype: CacheDtype = "float32", logits: LogitsMode = "last", kv: KvCache = "native"
) -> Contract:
    """The contract of DESIGN "Graph I/O" for `spec`. Logits are float32 for every dtype: [B, S, V], or with "last"
    [B, 1, V], of the R tokens that `logits_from_end` [R] names where it is fed.
    """
    held = caches(spec, dtype, kv)
    inputs = (
        Tensor(INPUT_IDS, "int64", (BATCH, SEQUENCE)),
        Tensor(ATTENTION_MASK, "int64", (BATCH, TOTAL)),
        Tensor(POSITION_IDS, "int64", (BATCH, SEQUENCE)),
        *(cache.past for cache in held),
    )
    last = logits == "last"
    overridable = (Tensor(LOGITS_FROM_END, "int64", (LOGITS_ROWS,)),) if last else ()
    rows: Dim = 1 if last else SEQUENCE
    outputs = (Tensor(LOGITS, "float32", (BATCH, rows, spec.vocab_size)), *(cache.present for cache in held))
    return Contract(inputs, overridable, outputs, held)
