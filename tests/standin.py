"""A hand-made two-layer ONNX folder with the contract's inputs and outputs, for tests of what runs such a file.

One short convolution, one grouped-query attention, a tied table; no norms, no rotary embedding, no padding support
(rows of one step have equal length). It is small enough to be built in a test, and real enough that caches matter.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

CONFIG = {
    "model_type": "lfm2",
    "vocab_size": 40,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 2,
    "layer_types": ["conv", "full_attention"],
    "intermediate_size": 32,
    "conv_L_cache": 3,
    "norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 2048,
    "eos_token_id": 7,
}

GRAPH = """
<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
standin (int64[batch_size, sequence_length] input_ids, int64[batch_size, total_sequence_length] attention_mask,
         int64[batch_size, sequence_length] position_ids, TYPE[batch_size, 16, 3] "past_conv.0",
         TYPE[batch_size, 1, past_sequence_length, 8] "past_key_values.1.key",
         TYPE[batch_size, 1, past_sequence_length, 8] "past_key_values.1.value")
     => (float[batch_size, ROWS, VOCABULARY] logits, TYPE[batch_size, 16, 3] "present_conv.0",
         TYPE[batch_size, 1, total_sequence_length, 8] "present.1.key",
         TYPE[batch_size, 1, total_sequence_length, 8] "present.1.value")
{
    embedded = Gather (table, input_ids)
    position = Cast <to = CODE> (position_ids)
    one = Constant <value_ints = [1]> ()
    two = Constant <value_ints = [2]> ()
    zero = Constant <value_ints = [0]> ()
    last = Constant <value_ints = [-1]> ()
    end = Constant <value_ints = [9223372036854775807]> ()
    minus_three = Constant <value_ints = [-3]> ()
    column = Unsqueeze (position, two)
    shifted = Mul (column, tiny)
    hidden = Add (embedded, shifted)
    Bx = Transpose <perm = [0, 2, 1]> (hidden)
    history = Concat <axis = 2> ("past_conv.0", Bx)
    "present_conv.0" = Slice (history, minus_three, end, two)
    convolved = Conv <group = 16> (history, kernel)
    recent = Slice (convolved, one, end, two)
    mixed = Transpose <perm = [0, 2, 1]> (recent)
    query = MatMul (mixed, query_weight)
    keys = MatMul (mixed, key_weight)
    values = MatMul (mixed, value_weight)
    count = ReduceSum <keepdims = 0> (attention_mask, one)
    index = Sub (count, one)
    seqlens = Cast <to = 6> (index)
    shape = Shape (attention_mask)
    width = Gather (shape, one)
    total = Cast <to = 6> (width)
    attended, "present.1.key", "present.1.value" = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 1> (
        query, keys, values, "past_key_values.1.key", "past_key_values.1.value", seqlens, total)
    summed = Add (mixed, attended)
    scored = SELECT
    transposed = Transpose <perm = [1, 0]> (table)
    products = MatMul (scored, transposed)
    logits = Cast <to = 1> (products)
}
"""


#: Attention as other tools export it: the caches are appended to, and no mask is read.
APPENDING = """
    keys4 = Unsqueeze (keys, one)
    values4 = Unsqueeze (values, one)
    "present.1.key" = Concat <axis = 2> ("past_key_values.1.key", keys4)
    "present.1.value" = Concat <axis = 2> ("past_key_values.1.value", values4)
    heads = Constant <value_ints = [0, 0, 2, 8]> ()
    merged = Constant <value_ints = [0, 0, 16]> ()
    split = Reshape (query, heads)
    query4 = Transpose <perm = [0, 2, 1, 3]> (split)
    keys_t = Transpose <perm = [0, 1, 3, 2]> ("present.1.key")
    scores = MatMul (query4, keys_t)
    weights = Softmax <axis = 3> (scores)
    mixed4 = MatMul (weights, "present.1.value")
    joined = Transpose <perm = [0, 2, 1, 3]> (mixed4)
    attended = Reshape (joined, merged)
"""


def write_standin(
    folder: Path,
    *,
    half: bool = False,
    logits: str = "last",
    name: str = "model.onnx",
    vocabulary: int = 40,
    appending: bool = False,
) -> Path:
    """Write config.json and onnx/`name` to `folder`; returns `folder`."""
    text = GRAPH.replace("TYPE", "float16" if half else "float").replace("CODE", "10" if half else "1")
    text = text.replace("SELECT", "Slice (summed, last, end, one)" if logits == "last" else "Identity (summed)")
    text = text.replace("ROWS", "1" if logits == "last" else "sequence_length")
    if appending:
        start, stop = text.index("    attended,"), text.index("    summed")
        text = text[:start] + APPENDING + text[stop:]
    text = text.replace("VOCABULARY", str(vocabulary))
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    weights = {
        "table": random.normal(size=(vocabulary, 16)),
        "kernel": random.normal(size=(16, 1, 3)),
        "query_weight": random.normal(size=(16, 16)) / 4,
        "key_weight": random.normal(size=(16, 8)) / 4,
        "value_weight": random.normal(size=(16, 8)) / 4,
        "tiny": np.full(1, 0.01),
    }
    dtype = np.float16 if half else np.float32
    for key, value in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(value.astype(dtype), key))
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "onnx" / name)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": vocabulary}))
    return folder
