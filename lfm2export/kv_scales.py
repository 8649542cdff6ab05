"""Scales of int8 keys and values: one a channel, the same for every token, measured on text (`calibrate.caches`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lfm2export.contract import Cache, key_value_scale
from lfm2export.errors import ArtifactError
from lfm2export.spec import ModelSpec

if TYPE_CHECKING:
    import onnx

Array = NDArray[np.float32]

#: By cache of a contract: what its codes are multiplied by, [1, K, 1, D]; None where it holds floats.
Scales = tuple[Array | None, ...]

#: The largest magnitude of a code that a scale is chosen for.
LARGEST_CODE = 127

#: What a code may be; the operator rounds to the nearest, ties to even, and limits to this.
CODES = (-128, 127)


@dataclass(frozen=True)
class LayerScales:
    """Of one attention layer: what the codes of keys and of values are multiplied by, float32 [K, D] each."""

    key: Array = field(repr=False)
    value: Array = field(repr=False)


@dataclass(frozen=True)
class KvScales:
    """layers: by attention layer. text, text_sha256, tokens: what they were measured on."""

    layers: Mapping[int, LayerScales]
    text: str
    text_sha256: str | None
    tokens: int

    def described(self) -> dict[str, Any]:
        """As JSON values, for the manifest: the scales themselves are in the file."""
        return {
            "bits": 8,
            "scale": "one a channel",
            "text": self.text,
            "text_sha256": self.text_sha256,
            "tokens": self.tokens,
        }


def unmeasured(spec: ModelSpec) -> KvScales:
    """Scales of the right shapes, for a graph of which only the size matters."""
    shape = (spec.num_key_value_heads, spec.head_dim)

    def scale(number: int) -> Array:  # equal ones would become one initializer
        return np.full(shape, number, np.float32)

    layers = {layer: LayerScales(scale(2 * layer + 1), scale(2 * layer + 2)) for layer in spec.attention_layers}
    return KvScales(layers, "none", None, 0)


def read_scales(model: onnx.ModelProto, caches: Sequence[Cache]) -> Scales:
    """What codes of each of `caches` are multiplied by.

    Raises:
        ArtifactError: `model` has no such initializer, or one of another type or shape.
    """
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    found: list[Array | None] = []
    for cache in caches:
        if cache.kind == "conv" or cache.past.dtype != "int8":
            found.append(None)
            continue
        name = key_value_scale(cache.layer, cache.kind)
        tensor = tensors.get(name)
        values = numpy_helper.to_array(tensor) if tensor is not None and not tensor.external_data else None
        _, heads, _, size = cache.past.shape
        if values is None or values.shape != (1, heads, 1, size) or values.dtype != np.float32:
            raise ArtifactError(
                f"the scale of {cache.past.name} is not in the graph as {name}, float32 [1, {heads}, 1, {size}]; build "
                "the file again"
            )
        found.append(values)
    return tuple(found)


def dequantized(caches: tuple[NDArray[Any], ...], scales: Scales) -> tuple[NDArray[Any], ...]:
    """`caches` in contract order, codes times their scales as float32."""
    pairs = zip(caches, scales, strict=True)
    return tuple(held if scale is None else held.astype(np.float32) * scale for held, scale in pairs)
