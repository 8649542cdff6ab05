"""PyTorch as the reference: transformers' own cached path in fp32 on the source weights, in memory or layer by layer.

Attention is eager, not sdpa: eager is the arithmetic written out in transformers' model file (softmax in fp32, one
order of summation whatever the length), where sdpa picks among fused kernels by shape. Long inputs are cut into pieces
of :data:`~lfm2export.reference.run.PIECE` tokens on the cache, so that eager's score matrix stays bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lfm2export.reference.available import available_bytes
from lfm2export.reference.run import Run, Trace
from lfm2export.reference.weights import Override, SourceWeights

if TYPE_CHECKING:
    from lfm2export.reference.memory import MemoryReference
    from lfm2export.reference.stream import StreamReference

Mode = Literal["auto", "memory", "stream"]

__all__ = ["Mode", "Override", "Run", "Trace", "chosen_mode", "load_reference", "torch_threads"]

#: The share of free memory that the in-memory model may take: the artifact and its user need room as well.
SHARE = 0.25

#: And the most that it takes by itself, in bytes, so that all of verification stays below 4 GB: 700M fits, 1.2B not.
MOST = 3_000_000_000


def chosen_mode(num_parameters: int, mode: Mode = "auto", limit: int | None = None) -> Literal["memory", "stream"]:
    """`mode`, with "auto" decided: in memory when 4 bytes per parameter fit `limit`; without one, 3 GB and a quarter of
    what is free.
    """
    if mode != "auto":
        return mode
    room = limit if limit is not None else min(MOST, int(SHARE * available_bytes()))
    return "memory" if 4 * num_parameters <= room else "stream"


def load_reference(
    folder: Path | str,
    mode: Mode = "auto",
    *,
    override: Override | None = None,
    half: bool = False,
    limit: int | None = None,
) -> MemoryReference | StreamReference:
    """The reference of the checkpoint in `folder`.

    Args:
        mode: "memory" holds the whole model in fp32, "stream" one layer at a time; "auto" sees what fits.
        override: gives a tensor's rows in place of the source's, such as those of a dequantized artifact.
        half: round every weight of the source to float16 first, as an fp16 artifact holds it.
        limit: bytes that "auto" may fill with weights.

    Raises:
        SourceError and its kinds: the checkpoint cannot be used, or transformers reads its config otherwise than we do.
    """
    from lfm2export.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(Path(folder))
    weights = SourceWeights(checkpoint, override, half)
    if chosen_mode(checkpoint.spec.num_parameters, mode, limit) == "memory":
        from lfm2export.reference.memory import MemoryReference

        return MemoryReference(weights)
    from lfm2export.reference.stream import StreamReference

    return StreamReference(weights)


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """PyTorch on `count` threads for a while; None leaves it as it is. Small matrices only lose by threads."""
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
