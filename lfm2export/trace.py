"""The LFM2 graph, traced from transformers' own `Lfm2ForCausalLM` with explicit caches, on the meta device.

No weight is loaded: the model is built from its configuration alone, and every initializer of the graph carries a
:class:`~lfm2export.weights.Recipe` instead of values. What is traced computes the whole contract already, padding
included, in plain ONNX operators; the passes only make it fast, so that the unfused graph remains a check on the fused
one.

Padding. Each row's valid tokens are packed to the front before the model sees them, ids and positions alike, and each
row's new keys and values go to the slots right behind its own past. Causality then keeps the pads, which are last, from
every valid token; the conv state is taken at the row's own end. The result of a padded row is that of the row alone.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch.export import Dim

from lfm2export.contract import (
    IR_VERSION,
    LOGITS_ROWS,
    ONNX_TYPES,
    OPSET,
    LogitsMode,
    contract,
)
from lfm2export.errors import GraphError
from lfm2export.spec import CONV, ModelSpec
from lfm2export.weights import RECIPE, Recipe

#: Where the wrapper holds the model: the prefix of every initializer's name in the trace.
MODEL_PREFIX = "model."


class ExplicitCache:
    """What transformers' LFM2 modules ask of a cache, answered from tensors that are graph inputs.

    past: per layer a conv state [B, H, L] or a pair of key and value [B, K, P, D].
    slots [B, P + S]: for every slot of the present, which entry of concat(past, new) it takes.
    ends [B, L]: the entries of concat(state, new) that are the row's next conv state.
    """

    def __init__(self, past: Sequence[Any], slots: torch.Tensor, ends: torch.Tensor) -> None:
        self.past, self.slots, self.ends = past, slots, ends
        self.present: dict[int, tuple[torch.Tensor, ...]] = {}

    def get_conv_state(self, layer: int, state_idx: int = 0) -> None:
        """None: it sends `Lfm2ShortConv` down the one path that serves any sequence length."""
        return None

    def update_conv_state(self, new: torch.Tensor, layer: int, conv_kernel_size: int | None = None) -> torch.Tensor:
        """new [B, H, S] -> [B, H, L + S]; the next state is taken at each row's own end."""
        window = torch.cat([self.past[layer], new], dim=-1)
        self.present[layer] = (torch.gather(window, 2, self.ends.unsqueeze(1).expand(-1, window.shape[1], -1)),)
        return window

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int, **unused: Any) -> tuple[torch.Tensor, ...]:
        """key, value [B, K, S, D] -> [B, K, P + S, D], the new ones right behind each row's own past.

        unused: transformers 5.24 hands down the keywords of its forward pass; caches of its own ignore them too.
        """
        index = self.slots[:, None, :, None]
        present = []
        for past, new in zip(self.past[layer], (key, value), strict=True):
            both = torch.cat([past, new], dim=2)
            present.append(torch.gather(both, 2, index.expand(-1, both.shape[1], -1, both.shape[3])))
        self.present[layer] = tuple(present)
        return self.present[layer]


class ExplicitCacheLM(torch.nn.Module):  # type: ignore[misc]  # torch is not followed
    """`Lfm2ForCausalLM` behind the contract's inputs and outputs."""

    def __init__(self, model: torch.nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.model = model
        self.spec = spec

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: Sequence[Any],
        from_end: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """input_ids, position_ids [B, S], attention_mask [B, T], past per layer -> logits, then every present.

        from_end [R]: which tokens get logits, counted from each row's end; None: all of them do.
        """
        length = input_ids.shape[1]
        new_mask = attention_mask[:, -length:]
        new_count = new_mask.sum(1, keepdim=True)  # [B, 1]
        past_count = attention_mask.sum(1, keepdim=True) - new_count
        offset = new_mask.argmax(1, keepdim=True)  # first valid token of each row
        steps = torch.arange(length)
        # [B, S]; of a tensor, for the exporter has no remainder by a symbolic size
        order = (steps + offset) % torch.scalar_tensor(length, dtype=torch.int64)

        past_length = next((entry[0].shape[2] for entry in past if isinstance(entry, tuple | list)), 0)
        slot = torch.arange(past_length + length)
        behind = torch.clamp(slot - past_count, max=length - 1) + past_length
        slots = torch.where(slot < past_count, slot, behind)  # [B, P + S]
        visible = slot.view(1, 1, 1, -1) <= past_count.view(-1, 1, 1, 1) + steps.view(1, 1, -1, 1)
        mask = torch.where(visible, 0.0, torch.finfo(torch.float32).min)  # [B, 1, S, P + S]

        cache = ExplicitCache(past, slots, new_count + torch.arange(self.spec.conv_L_cache))
        hidden = self.model.model(
            input_ids=torch.gather(input_ids, 1, order),
            position_ids=torch.gather(position_ids, 1, order),
            attention_mask={"full_attention": mask, "conv": None},
            cache=cache,
            use_cache=True,
        ).last_hidden_state
        # "all" goes back to where each token stood: the k-th valid token is at packed place k.
        index = new_mask.cumsum(1) - new_mask if from_end is None else torch.clamp(new_count - 1 - from_end, min=0)
        hidden = torch.gather(hidden, 1, index.unsqueeze(2).expand(-1, -1, hidden.shape[2]))
        presents = [tensor for layer in range(len(past)) for tensor in cache.present[layer]]
        return (self.model.lm_head(hidden), *presents)


def trace(spec: ModelSpec, logits: LogitsMode = "last") -> ir.Model:
    """The unfused graph of `spec`: contract names and order, float32, recipes for weights, module paths on the nodes.

    Raises:
        GraphError: torch's exporter produced an initializer that is no tensor of the checkpoint.
    """
    from transformers import Lfm2Config, Lfm2ForCausalLM

    config = Lfm2Config(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        block_auto_adjust_ff_dim=False,
        num_hidden_layers=spec.num_hidden_layers,
        num_attention_heads=spec.num_attention_heads,
        num_key_value_heads=spec.num_key_value_heads,
        head_dim=spec.head_dim,
        conv_L_cache=spec.conv_L_cache,
        conv_bias=spec.conv_bias,
        layer_types=list(spec.layer_types),
        tie_word_embeddings=spec.tie_word_embeddings,
        norm_eps=spec.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
        max_position_embeddings=spec.max_position_embeddings,
        attn_implementation="eager",
    )
    inverse_frequencies = _inverse_frequencies(config)
    with torch.device("meta"), _quiet():
        model = Lfm2ForCausalLM(config).eval()
        # A tie alone leaves two names for one parameter; the checkpoint's name is the table's.
        if spec.tie_word_embeddings:
            model.lm_head.weight = model.model.embed_tokens.weight
        arguments, shapes = _example(spec, logits)
        program = torch.export.export(ExplicitCacheLM(model, spec), arguments, dynamic_shapes=shapes, strict=False)
        exported = torch.onnx.export(program, dynamo=True, opset_version=OPSET, optimize=False, verbose=False)
    assert exported is not None
    traced: ir.Model = exported.model
    traced.ir_version = IR_VERSION
    _attach_recipes(traced, spec, inverse_frequencies)
    _name_contract(traced, spec, logits)
    return traced


def _inverse_frequencies(config: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """RoPE's inverse frequencies [D / 2] by transformers' own function, on the CPU (the meta model has no values)."""
    from transformers.models.lfm2.modeling_lfm2 import Lfm2RotaryEmbedding

    frequencies, scaling = Lfm2RotaryEmbedding.compute_default_rope_parameters(config)
    if scaling != 1.0:
        raise GraphError(f"RoPE attention scaling is {scaling}, expected 1.0; the tracer is proven on plain RoPE only")
    return np.ascontiguousarray(frequencies.numpy(), dtype=np.float32)


def _example(spec: ModelSpec, logits: LogitsMode) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Example arguments and their dynamic dimensions. Sizes are all different and above 1, so that none is
    specialized.
    """
    batch, length, past_length = 2, 5, 3
    dims = {
        name: Dim(name) for name in ("batch_size", "sequence_length", "past_sequence_length", "total_sequence_length")
    }
    row = {0: dims["batch_size"]}
    tokens = row | {1: dims["sequence_length"]}
    past: list[Any] = []
    past_shapes: list[Any] = []
    for kind in spec.layer_types:
        if kind == CONV:
            past.append(torch.zeros(batch, spec.hidden_size, spec.conv_L_cache))
            past_shapes.append(row)
        else:
            shape = (batch, spec.num_key_value_heads, past_length, spec.head_dim)
            past.append((torch.zeros(shape), torch.zeros(shape)))
            past_shapes.append((row | {2: dims["past_sequence_length"]},) * 2)
    ids = [torch.zeros(batch, size, dtype=torch.int64) for size in (length, past_length + length, length)]
    arguments = (*ids, past, torch.zeros(4, dtype=torch.int64) if logits == "last" else None)
    rows = {0: Dim(LOGITS_ROWS)} if logits == "last" else None
    return arguments, (tokens, row | {1: dims["total_sequence_length"]}, tokens, past_shapes, rows)


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter reports its progress on the log; the library is silent."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _attach_recipes(
    model: ir.Model, spec: ModelSpec, inverse_frequencies: np.ndarray[Any, np.dtype[np.float32]]
) -> None:
    """Give every initializer its checkpoint name and recipe, and take its meta tensor away."""
    expected = spec.source_tensors()
    graph = model.graph
    for value in list(graph.initializers.values()):
        name = str(value.name).removeprefix(MODEL_PREFIX)
        if name == "model.rotary_emb.inv_freq":
            value.const_value = ir.tensor(inverse_frequencies, name=value.name)
            continue
        if name == "lm_head.weight" and spec.tie_word_embeddings:
            name = "model.embed_tokens.weight"
        shape = tuple(size for size in value.shape or () if isinstance(size, int))
        if expected.get(name) != shape:
            raise GraphError(f"the traced graph has an initializer {name} {list(shape)} that no LFM2 checkpoint holds")
        value.name = name
        value.meta[RECIPE] = Recipe(parts=(name,), shape=shape)
        value.const_value = None


def _name_contract(model: ir.Model, spec: ModelSpec, logits: LogitsMode) -> None:
    """Inputs and outputs get the contract's names, types and symbols; their order is already the contract's. What is
    overridable is an input until the passes are done: `passes.last_token.give_default`.
    """
    wanted = contract(spec, logits=logits)
    graph = model.graph
    for values, tensors in ((graph.inputs, (*wanted.inputs, *wanted.overridable)), (graph.outputs, wanted.outputs)):
        if len(values) != len(tensors):
            raise GraphError(f"the traced graph has {len(values)} inputs or outputs, the contract {len(tensors)}")
        for value, tensor in zip(values, tensors, strict=True):
            value.name = tensor.name
            value.shape = ir.Shape(tensor.shape)
            value.type = ir.TensorType(ir.DataType[ONNX_TYPES[tensor.dtype]])
