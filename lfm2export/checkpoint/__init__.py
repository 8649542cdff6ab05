"""Weights coming in: a checkpoint folder, checked whole when it is opened.

folder     which files there are, and that tensors and config.json agree
foreign    adapters, wrapped modules and leftovers of quantization: what they are, and how to save a model instead
header     the header of one safetensors file
values     its values, a range at a time
"""

from lfm2export.checkpoint.folder import EMBEDDING, HEAD, Checkpoint, open_checkpoint
from lfm2export.checkpoint.values import StoredTensor

__all__ = ["EMBEDDING", "HEAD", "Checkpoint", "StoredTensor", "open_checkpoint"]
