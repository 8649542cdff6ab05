"""The matrices of a model that files may store in blocks, as they are stored: projections that read one value are one.

    conv layer        in_proj, out_proj          attention layer   q + k + v, out_proj
    either kind       w1 + w3, w2                table             the embedding, and the head where it is not the same

A file may hold the parts of `w1 + w3` apart (`recipes.Formats.apart`), in one format all the same.
What chooses or calibrates formats goes by this list; `passes.packing` makes the same stacks, which a test compares.
"""

from __future__ import annotations

from dataclasses import dataclass

from lfm2export.recipes import TABLES
from lfm2export.spec import CONV, ModelSpec
from lfm2export.weights import stacked_name


@dataclass(frozen=True)
class Matrix:
    """`parts` are source tensors stacked along their rows: [rows, columns]. layer: None for table and head."""

    parts: tuple[str, ...]
    rows: int
    columns: int
    layer: int | None

    @property
    def name(self) -> str:
        """`model.layers.0.feed_forward.w1.weight+w3`, as initializers are called."""
        return stacked_name(self.parts)


def matrices(spec: ModelSpec) -> tuple[Matrix, ...]:
    """Every matrix of `spec`: layer by layer in the order in which a layer uses them, then the table."""
    shapes = spec.source_tensors()
    found = []
    for layer, kind in enumerate(spec.layer_types):
        operator = "conv" if kind == CONV else "self_attn"
        first = ("in_proj",) if kind == CONV else ("q_proj", "k_proj", "v_proj")
        for owner, names in ((operator, first), (operator, ("out_proj",)), ("feed_forward", ("w1", "w3"))):
            found.append(_matrix(tuple(f"model.layers.{layer}.{owner}.{name}.weight" for name in names), shapes, layer))
        found.append(_matrix((f"model.layers.{layer}.feed_forward.w2.weight",), shapes, layer))
    found += [_matrix((name,), shapes, None) for name in TABLES if name in shapes]
    return tuple(found)


def _matrix(parts: tuple[str, ...], shapes: dict[str, tuple[int, ...]], layer: int | None) -> Matrix:
    return Matrix(parts, sum(shapes[part][0] for part in parts), shapes[parts[0]][1], layer)
