"""The model on blocks, in memory, for what has to run it backwards.

Letters: T tokens of a sequence, H hidden, N rows, K columns, G blocks a row, S block size.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lfm2export.checkpoint import EMBEDDING, HEAD
from lfm2export.quant.blocks import unpack
from lfm2export.reference.stream import StreamReference, causal_mask
from lfm2export.weights import BlockFormat, QuantizedBlocks

#: Rows of logits that are in memory at once: 34 MB for 65,536 tokens, a few times over.
HEAD_ROWS = 128


class _Product(torch.autograd.Function):  # type: ignore[misc]  # torch is not followed
    """y [T, N] = x [T, K] W^T with W = scales * codes; the weights are made when they are needed, and not kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scales: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, scales, codes)
        return torch.nn.functional.linear(x, _weight(scales, codes, x.shape[-1]))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        x, scales, codes = ctx.saved_tensors
        rows = grads[0].reshape(-1, grads[0].shape[-1])
        by_weight = rows.mT @ x.reshape(-1, x.shape[-1])  # [N, K]
        padding = codes.shape[1] * codes.shape[2] - x.shape[-1]
        by_weight = torch.nn.functional.pad(by_weight, (0, padding)).view(codes.shape)
        by_scale = (by_weight * codes).sum(dim=-1)
        return grads[0] @ _weight(scales, codes, x.shape[-1]), by_scale, None


def _weight(scales: torch.Tensor, codes: torch.Tensor, columns: int) -> torch.Tensor:
    """[N, G], int8 [N, G, S] -> [N, K]."""
    return (codes * scales[..., None]).view(len(codes), -1)[:, :columns]


class BlockLinear(torch.nn.Module):  # type: ignore[misc]  # torch is not followed
    """A linear layer on blocks. codes int8 [N, G, S], zero points taken off; scales float32 [N, G]."""

    def __init__(self, blocks: QuantizedBlocks, format: BlockFormat, bias: torch.Tensor | None) -> None:
        super().__init__()
        count = blocks.scales.shape[1]
        codes = unpack(blocks.codes, format.bits, format.block_size).astype(np.int16)
        if blocks.zero_points is None:
            codes -= format.zero_point
        else:
            codes -= unpack(blocks.zero_points, format.bits, count)[..., None]
        self.codes = torch.from_numpy(codes.astype(np.int8))
        self.start = torch.from_numpy(blocks.scales.astype(np.float32))
        self.change = torch.zeros_like(self.start).requires_grad_()
        self.bias = bias

    def scales(self) -> torch.Tensor:
        return self.start * (1 + self.change)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = _Product.apply(x, self.scales(), self.codes)
        return y if self.bias is None else y + self.bias

    def settle(self) -> NDArray[np.float16]:
        """The scales as files hold them, which are also what is computed with from now on."""
        rounded = self.scales().detach().to(torch.float16)
        self.start = rounded.float()
        self.change = torch.zeros_like(self.start).requires_grad_()
        found: NDArray[np.float16] = rounded.numpy()
        return found


class Student:
    """The model on blocks: transformers' layers, their matrices replaced.

    source: the reference's machine on the weights that the file holds in floats (the table as its file rounds it).
    fixed: matrices whose scales stay.
    """

    def __init__(
        self,
        source: StreamReference,
        blocks: Mapping[str, tuple[BlockFormat, QuantizedBlocks]],
        fixed: Collection[str] = (),
    ) -> None:
        self.source = source
        self.matrices: dict[str, BlockLinear] = {}
        self.layers = []
        for layer in range(source.spec.num_hidden_layers):
            module = source.layer(layer)
            for name in [name for name, inner in module.named_modules() if isinstance(inner, torch.nn.Linear)]:
                whole = f"model.layers.{layer}.{name}.weight"
                if whole in blocks:
                    format, found = blocks[whole]
                    self.matrices[whole] = BlockLinear(found, format, module.get_submodule(name).bias)
                    module.set_submodule(name, self.matrices[whole])
            self.layers.append(module)
        self.tuned = {name: matrix for name, matrix in self.matrices.items() if name not in fixed}
        self.norm = source.norm()
        self.embedding = torch.from_numpy(source.weights.whole(EMBEDDING))
        tied = source.spec.tie_word_embeddings
        self.table = self.embedding if tied else torch.from_numpy(source.weights.whole(HEAD))

    @property
    def changes(self) -> list[torch.Tensor]:
        return [matrix.change for matrix in self.tuned.values()]

    def hidden(self, tokens: Sequence[int]) -> torch.Tensor:
        """After the final norm, [T, H]."""
        hidden = self.embedding[torch.tensor([tokens])]
        positions = torch.arange(len(tokens))[None]
        for module in self.layers:
            hidden = module(
                hidden,
                position_embeddings=self.source.rotary(hidden, positions),
                attention_mask=causal_mask(0, len(tokens)) if module.is_attention_layer else None,
                position_ids=positions,
            )
        normed: torch.Tensor = self.norm(hidden)[0]
        return normed
