"""An LFM2 checkpoint in the words of GGUF: tensor names, tensor shapes, and the model's numbers, as data.

llama.cpp's architecture `lfm2` takes the projections as they are stored (its rotary embedding turns halves, as
transformers does), the convolution's kernel as a matrix [H, L], and marks a conv layer by 0 KV heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lfm2export.spec import CONV, ModelSpec

ARCHITECTURE = "lfm2"

#: Outside the layers. The final norm's name is a mistake that llama.cpp keeps.
OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.embedding_norm.weight": "token_embd_norm.weight",
    "lm_head.weight": "output.weight",
}

#: After model.layers.N. -> after blk.N.
INNER = {
    "operator_norm.weight": "attn_norm.weight",
    "ffn_norm.weight": "ffn_norm.weight",
    "feed_forward.w1.weight": "ffn_gate.weight",
    "feed_forward.w2.weight": "ffn_down.weight",
    "feed_forward.w3.weight": "ffn_up.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.out_proj.weight": "attn_output.weight",
    "self_attn.q_layernorm.weight": "attn_q_norm.weight",
    "self_attn.k_layernorm.weight": "attn_k_norm.weight",
    "conv.in_proj.weight": "shortconv.in_proj.weight",
    "conv.out_proj.weight": "shortconv.out_proj.weight",
    "conv.conv.weight": "shortconv.conv.weight",
}


@dataclass(frozen=True)
class Tensor:
    """`source` as stored in the checkpoint, `name` and `shape` as stored in GGUF (numpy's order of axes).

    matrix: stored in the file's type; other tensors are float32, llama.cpp takes nothing else.
    """

    source: str
    name: str
    shape: tuple[int, ...]
    matrix: bool


def tensors(spec: ModelSpec) -> Iterator[Tensor]:
    """Every tensor of the checkpoint, in its order.

    Raises:
        KeyError: a tensor that llama.cpp's `lfm2` does not have (a bias).
    """
    for source, shape in spec.source_tensors().items():
        if source in OUTER:
            yield Tensor(source, OUTER[source], shape, matrix=len(shape) == 2)
            continue
        _, _, layer, rest = source.split(".", 3)
        kernel = rest == "conv.conv.weight"
        stored = (shape[0], shape[2]) if kernel else shape
        yield Tensor(source, f"blk.{layer}.{INNER[rest]}", stored, matrix=len(stored) == 2 and not kernel)


def numbers(spec: ModelSpec) -> dict[str, int | float | list[int]]:
    """Metadata after `lfm2.`, that shapes llama.cpp's graph."""
    return {
        "block_count": spec.num_hidden_layers,
        "context_length": spec.max_position_embeddings,
        "embedding_length": spec.hidden_size,
        "feed_forward_length": spec.intermediate_size,
        "attention.head_count": spec.num_attention_heads,
        "attention.head_count_kv": [0 if kind == CONV else spec.num_key_value_heads for kind in spec.layer_types],
        "attention.key_length": spec.head_dim,
        "attention.value_length": spec.head_dim,
        "attention.layer_norm_rms_epsilon": spec.norm_eps,
        "rope.freq_base": spec.rope_theta,
        "rope.dimension_count": spec.head_dim,
        "shortconv.l_cache": spec.conv_L_cache,
        "vocab_size": spec.vocab_size,
    }
