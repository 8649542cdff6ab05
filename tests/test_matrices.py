"""The list of matrices is what graphs store in blocks, stack for stack."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lfm2export.matrices import matrices
from lfm2export.pipeline import dtype_graph
from lfm2export.recipes import Formats, Options, formats
from lfm2export.spec import ModelSpec
from lfm2export.weights import RECIPE, BlockFormat, Recipe
from passes.traces import KINDS_350M, ODD, SPEC, shared_fused

SPECS = {"tied": replace(SPEC, layer_types=KINDS_350M[:4]), "untied": replace(ODD, layer_types=KINDS_350M[:4])}
EIGHT = BlockFormat(8, 64, symmetric=True)


def stored(
    spec: ModelSpec, chosen: dict[tuple[str, ...], BlockFormat], options: Options | None = None
) -> dict[str, Recipe]:
    """Recipes of the codes of every matrix in blocks, by name without `.codes`."""
    options = options if options is not None else Options(symmetric=False)
    model = dtype_graph(shared_fused(spec), spec, "q4", options, chosen)
    found = {name: value.meta[RECIPE] for name, value in model.graph.initializers.items() if RECIPE in value.meta}
    return {name.removesuffix(".codes"): recipe for name, recipe in found.items() if name.endswith(".codes")}


@pytest.mark.parametrize("kind", SPECS)
def test_names_parts_and_shapes_are_those_of_the_graph(kind: str) -> None:
    spec = SPECS[kind]
    codes = stored(spec, {})
    listed = {matrix.name: matrix for matrix in matrices(spec)}
    assert set(codes) == set(listed) and len(listed) == len(matrices(spec))
    for name, recipe in codes.items():
        assert recipe.block is not None
        assert (recipe.parts, recipe.shape[0]) == (listed[name].parts, listed[name].rows)
        assert recipe.shape[1] == recipe.block.blocks(listed[name].columns)


def test_gate_and_up_are_stored_apart_where_that_is_fused() -> None:
    spec = SPECS["tied"]
    packed, apart = stored(spec, {}), stored(spec, {}, Options())
    halves = {matrix.name: matrix.parts for matrix in matrices(spec) if matrix.name.endswith("w1.weight+w3")}
    assert len(halves) == spec.num_hidden_layers
    assert set(apart) == set(packed) - set(halves) | {part for parts in halves.values() for part in parts}
    for name, parts in halves.items():
        assert [apart[part].parts for part in parts] == [(part,) for part in parts]
        assert sum(apart[part].shape[0] for part in parts) == packed[name].shape[0]


def test_each_chosen_format_reaches_its_matrix_alone() -> None:
    spec = SPECS["untied"]
    default = {name: recipe.block for name, recipe in stored(spec, {}).items()}
    for matrix in matrices(spec):
        got = {name: recipe.block for name, recipe in stored(spec, {matrix.parts: EIGHT}).items()}
        assert got == default | {matrix.name: EIGHT}


def test_layers_and_order() -> None:
    spec = SPECS["untied"]
    assert [matrix.layer for matrix in matrices(spec)] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [None, None]
    assert [matrix.name.split(".")[-2] for matrix in matrices(spec)][-6:-2] == ["in_proj", "out_proj", "w1", "w2"]
    assert sum(matrix.rows * matrix.columns for matrix in matrices(spec)) < spec.num_parameters


def test_only_files_with_a_4_bit_body_take_what_was_chosen() -> None:
    chosen = {("model.layers.0.conv.in_proj.weight",): EIGHT}
    for dtype in ("q4", "q4f16"):
        assert formats(dtype, Options(), chosen).of(("model.layers.0.conv.in_proj.weight",)) == EIGHT
        assert formats(dtype, Options(), chosen).of(("model.layers.1.conv.in_proj.weight",)) == BlockFormat(
            4, 32, False
        )
    assert formats("q8", Options(), chosen).chosen == {}
    assert formats("fp32", Options(), chosen) == Formats(None, None)
