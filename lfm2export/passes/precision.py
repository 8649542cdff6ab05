"""From a row of the recipe table to passes: what turns the fused float32 graph into the file of one dtype."""

from __future__ import annotations

from lfm2export.kv_scales import KvScales, unmeasured
from lfm2export.passes import (
    Pass,
    block_quantize,
    causal_conv,
    half,
    int8_cache,
    int8_matmul,
    naming,
    rotary_table,
    silu,
)
from lfm2export.recipes import RECIPES, Chosen, Options, few_operators, formats, kv_cache
from lfm2export.spec import ModelSpec


def precision_passes(
    dtype: str, spec: ModelSpec, options: Options, chosen: Chosen | None = None, scales: KvScales | None = None
) -> tuple[Pass, ...]:
    """The passes that turn the fused float32 graph into the file of `dtype`, in order.

    chosen: as in `formats`. scales: of int8 keys and values; None where only the size of the graph matters.
    """
    recipe = RECIPES[dtype]
    blocks = formats(dtype, options, chosen)
    few = few_operators(dtype, options)
    steps: list[Pass] = []
    if few:
        steps.append(Pass("rotary_table", rotary_table.fuse, rotary_table.expected))
    if recipe.half:
        steps.append(Pass("half", half.fuse, half.expected))
        steps.append(Pass("silu", silu.fuse, silu.expected))
    if few:
        steps.append(Pass("causal_conv", causal_conv.fuse, causal_conv.expected))
    if blocks.channels is not None:
        fuse = int8_matmul.projections_pass(blocks.channels, options.logits)
        steps.append(Pass("int8_matmul", fuse, _packed_projections))
        steps.append(Pass("int8_table", int8_matmul.table_pass(blocks.channels, options.logits), lambda spec: 2))
    elif blocks.body is not None:
        fuse = block_quantize.projections_pass(blocks, half=recipe.half, level=options.accuracy_level)
        steps.append(Pass("block_quantize", fuse, _packed_projections))
    if blocks.channels is None and blocks.table is not None:
        fuse = block_quantize.table_pass(blocks, options.lookup, half=recipe.half, level=options.accuracy_level)
        steps.append(Pass("block_table", fuse, lambda spec: 2))
    if kv_cache(dtype, options) == "int8":
        fuse = int8_cache.fuse_with(scales if scales is not None else unmeasured(spec))
        steps.append(Pass("int8_cache", fuse, int8_cache.expected))
    steps.append(Pass("naming", naming.fuse, naming.expected))
    return tuple(steps)


def _packed_projections(spec: ModelSpec) -> int:
    """A conv layer has two projections, an attention layer two after packing, and every FFN two after packing."""
    return 4 * spec.num_hidden_layers
