"""How many nodes a step runs on WebGPU, known before anything runs: what small models there are bound by.

Counted from the placements that onnxruntime 1.30 writes to its verbose log, after its own fusions
(`tests/consumers/test_webgpu_nodes.py` counts again). A Reshape and a copy from the host count as one, like a kernel.
"""

from __future__ import annotations

from lfm2export.passes.causal_conv import MOST
from lfm2export.passes.rotary_table import MOST_POSITIONS
from lfm2export.recipes import RECIPES, Options, few_operators, formats, is_fused_mlp
from lfm2export.spec import ModelSpec

#: norm, in_proj, Split, B * x, CausalConvWithState, GatherND, C * y, out_proj, MatMulNBitsMlp, w2.
CONV_LAYER = 10
#: norm, q k v, Split, Reshape, Norm, Mul, Reshape, RotaryEmbedding, Split, GroupQueryAttention, out_proj, MLP, w2.
ATTENTION_LAYER = 13
#: The states of all conv layers: two transposes, two Concats and Splits or more, one Concat and one GatherND; two
#: indices from the host.
CONV_STATES = 6
#: Positions and lengths from the host.
ATTENTION_INPUTS = 2
#: Tokens and the last one's place from the host, 6 of the lookup in an 8-bit table, two GatherElements, norm, head.
ENDS = 12


def webgpu_nodes(spec: ModelSpec, dtype: str, options: Options) -> int | None:
    """Nodes on WebGPU of the file of `dtype`; None for forms that were not counted."""
    stored = formats(dtype, options)
    counted = (
        few_operators(dtype, options)
        and is_fused_mlp(stored.gate_up)
        and options.target is None
        and options.table_bits == 8
        and options.lookup == "portable"
        and options.logits == "last"
        and not spec.conv_bias
        and spec.max_position_embeddings <= MOST_POSITIONS
        and spec.conv_layers
        and spec.attention_layers
    )
    if not counted:
        return None
    conv, attention = len(spec.conv_layers), len(spec.attention_layers)
    chained = 4 * -(-(conv - 1) // (MOST - 1))
    layers = CONV_LAYER * conv + ATTENTION_LAYER * attention
    return layers + CONV_STATES + chained + ATTENTION_INPUTS + ENDS + int(RECIPES[dtype].half)
