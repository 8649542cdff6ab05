"""What both references share of PyTorch: transformers' own configuration, the state of a step, and reading caches.

Letters: B batch, P past, H hidden, K KV heads, D head_dim, L conv_L_cache.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from numpy.typing import NDArray
from transformers import DynamicCache, Lfm2Config

from lfm2export.checkpoint import Checkpoint
from lfm2export.config_fields import ARCHITECTURE_FIELDS
from lfm2export.errors import ConfigError, StepError
from lfm2export.reference.run import FAINT_PARTS
from lfm2export.spec import CONV, ModelSpec
from lfm2export.steps import Mask, Tokens, row_lengths, step_inputs
from lfm2export.untrusted.escape import one_line
from lfm2export.untrusted.paths import shown

#: It advises to install a CUDA kernel for the convolution; the reference is the PyTorch one, and the library is silent.
logging.getLogger("transformers.integrations.hub_kernels").setLevel(logging.ERROR)


@dataclass(frozen=True)
class ReferenceState:
    """`mask` [B, P], all ones, and transformers' own cache, which a step changes in place."""

    mask: Mask
    cache: Any = field(repr=False)

    @property
    def lengths(self) -> Mask:
        """Tokens held per row [B]; also the next position."""
        return row_lengths(self.mask)


def read_config(checkpoint: Checkpoint) -> Any:
    """transformers' own reading of config.json, with eager attention; of the fields that make the architecture alone.

    Others are a stranger's: some choose code (`_attn_implementation` may name a kernel on the hub), and a token id of
    the wrong type would end in a traceback.

    Raises:
        ConfigError: it takes a field otherwise than our spec does, or does not take it.
    """
    stated = {name: value for name, value in checkpoint.config.items() if name in ARCHITECTURE_FIELDS}
    try:
        config = Lfm2Config.from_dict(stated)
    except (TypeError, ValueError, KeyError, StrictDataclassError) as error:
        raise ConfigError(
            f"config.json: transformers does not take it ({shown(one_line(str(error)), 200)}); correct it as the "
            "checkpoint's source has it"
        ) from error
    config._attn_implementation = "eager"
    spec = checkpoint.spec
    head_dim = config.to_dict().get("head_dim") or config.hidden_size // config.num_attention_heads
    theirs = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": head_dim,
        "conv_L_cache": config.conv_L_cache,
        "conv_bias": config.conv_bias,
        "layer_types": tuple(config.layer_types),
        "tie_word_embeddings": config.tie_word_embeddings,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_parameters["rope_theta"],
    }
    for name, value in theirs.items():
        if value != spec.__dict__[name]:
            raise ConfigError(
                f"config.json: transformers takes {name} as {shown(value)}, the export as "
                f"{shown(spec.__dict__[name])}; "
                "state it under the name that transformers uses"
            )
    return config


def new_state(config: Any, batch: int) -> ReferenceState:
    return ReferenceState(np.zeros((batch, 0), np.int64), DynamicCache(config=config))


def checked_step(
    spec: ModelSpec, tokens: Tokens, state: ReferenceState, attention_mask: Mask | None
) -> tuple[torch.Tensor, Mask]:
    """The tokens [B, S] of a step, and the mask after it.

    Raises:
        StepError: as any step, and for padding: transformers is no reference of a padded row.
    """
    if attention_mask is not None and not np.all(attention_mask):
        raise StepError("the reference takes no padding; the reference of a padded row is the same row run alone")
    feeds, mask = step_inputs(spec, tokens, state.mask, attention_mask)
    return torch.from_numpy(next(iter(feeds.values()))), mask


def read_caches(spec: ModelSpec, state: ReferenceState) -> tuple[NDArray[Any], ...]:
    """Copies of every cache tensor in contract order: conv [B, H, L], key and value [B, K, P, D]."""
    batch, past = state.mask.shape
    found: list[NDArray[Any]] = []
    for layer, kind in enumerate(spec.layer_types):
        held = state.cache.layers[layer]
        if kind == CONV:
            empty = np.zeros((batch, spec.hidden_size, spec.conv_L_cache), np.float32)
            found.append(held.conv_states[0].numpy().copy() if past else empty)
        elif past:
            found += [held.keys.numpy().copy(), held.values.numpy().copy()]
        else:
            found += [np.zeros((batch, spec.num_key_value_heads, 0, spec.head_dim), np.float32)] * 2
    return tuple(found)


@contextmanager
def recorded_products(conv: Any) -> Iterator[list[NDArray[np.float32]]]:
    """Collect Bx [B, H, S] of every pass through an `Lfm2ShortConv`: B * x of in_proj's output, as it has it."""
    products: list[NDArray[np.float32]] = []

    def record(module: Any, inputs: Any, output: torch.Tensor) -> None:
        B, _, x = output.transpose(-1, -2).chunk(3, dim=-2)
        products.append((B * x).numpy())

    hook = conv.in_proj.register_forward_hook(record)
    try:
        yield products
    finally:
        hook.remove()


@contextmanager
def faint(layer: Any) -> Iterator[None]:
    """Scale the inputs of one layer's :data:`~lfm2export.reference.run.FAINT_PARTS` for a while."""

    def scaled(by: float) -> Callable[[Any, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]:
        return lambda module, inputs: (inputs[0] * by, *inputs[1:])

    with ExitStack() as hooks:
        for name, module in layer.named_modules():
            if name in FAINT_PARTS:
                hooks.callback(module.register_forward_pre_hook(scaled(FAINT_PARTS[name])).remove)
        yield
