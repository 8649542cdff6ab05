"""Calibration with one thing changed: folds leave the model as it is, and each is kept where its matrix gains by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality import variant_weights
from benchmarks.quality.results import Figures
from benchmarks.quality.variant_weights import NORMS, PRODUCTS, Made, Variant, make, override
from benchmarks.quality.variants import PLAIN, VARIANTS, Line, chosen, markdown
from lfm2export import measures
from lfm2export.calibrate.activations import Sequences
from lfm2export.checkpoint import Checkpoint, open_checkpoint
from lfm2export.progress import silent
from lfm2export.recipes import TABLES
from lfm2export.reference import Run, load_reference
from tiny import write_tiny

Array = measures.Array
TOKENS = np.random.default_rng(0).integers(0, 500, (12, 48)).tolist()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(write_tiny(tmp_path_factory.mktemp("tiny") / "tiny", conv_bias=True))


def made(checkpoint: Checkpoint, variant: Variant, folder: Path) -> tuple[dict[str, Array], Made]:
    return make(checkpoint, Sequences.split(TOKENS), variant, folder, 2, silent)


@pytest.fixture(scope="module")
def plain(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(checkpoint, Variant("plain"), tmp_path_factory.mktemp("plain"))[1]


def hidden(checkpoint: Checkpoint, values: dict[str, Array]) -> Array:
    (trace,) = load_reference(checkpoint.folder, override=override(values)).run([Run.prefill(TOKENS[0], None)])
    return trace.hidden


def test_folded_weights_are_the_same_model(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fold taken: the weights that were quantized, with what feeds them, before their rounding."""
    monkeypatch.setattr(variant_weights, "least", lambda tried: tried[-1])
    variant = Variant("all", folds=(*NORMS, *PRODUCTS))
    weights, found = made(checkpoint, variant, tmp_path)
    assert len(found.taken) == 4 * 3 + 2  # attention's out_proj has none
    whole = found.sources | {name: values for name, values in found.floats.items() if name not in TABLES}
    plain = hidden(checkpoint, {})
    np.testing.assert_allclose(hidden(checkpoint, whole), plain, rtol=0, atol=1e-5 * np.abs(plain).max())
    moved = {name for name, values in whole.items() if not np.allclose(values, checkpoint.rows(name, 0, len(values)))}
    assert len(moved) == 4 * 5 + 2 * 4 + 2 * 3  # norms, w1, w3, w2; in_proj, kernel, bias, out_proj; q, k, v
    assert set(weights) == set(found.blocks) | set(found.floats)
    loss = np.square(hidden(checkpoint, weights) - plain).mean() / np.square(plain).mean()
    assert 1e-6 < loss < 0.3  # random weights lose a tenth; what does not belong together gives about 1


def test_a_fold_is_kept_only_where_its_matrix_gains(checkpoint: Checkpoint, plain: Made, tmp_path: Path) -> None:
    _, folded = made(checkpoint, Variant("folds", folds=PRODUCTS), tmp_path)
    assert not plain.taken and set(folded.floats) - set(plain.floats) <= {
        f"model.layers.{layer}.conv.conv.{kind}" for layer in range(4) for kind in ("weight", "bias")
    }
    first = {choice.parts: choice.after for choice in plain.choices}
    kernel = ("model.layers.0.conv.out_proj.weight",)  # everything before it is equal
    [after] = [choice.after for choice in folded.choices if choice.parts == kernel]
    assert after <= first[kernel]
    assert (after < first[kernel]) == any(name.startswith("layer 0, kernel") for name in folded.taken)


@pytest.mark.parametrize("changed", [{"damping": 0.3}, {"float_inputs": True}], ids=str)
def test_what_a_variant_changes_reaches_the_codes(
    checkpoint: Checkpoint, plain: Made, tmp_path: Path, changed: dict[str, object]
) -> None:
    _, other = made(checkpoint, Variant("other", **changed), tmp_path)  # type: ignore[arg-type]
    assert any(not np.array_equal(plain.blocks[name].codes, other.blocks[name].codes) for name in plain.blocks)


def test_ratios_are_to_the_plain_row_above() -> None:
    def line(name: str, *klds: float) -> Line:
        return Line(name, Figures(measures.mean(klds), 0.9, 30.0, klds), None, ())

    text = markdown([line("round", 4e-3, 8e-3), line("g32", 2e-3, 4e-3), line("g32, other", 1e-3, 2e-3)])
    assert "| g32 | 3.000 | 50.0 ± 0.0 % | 100.0 ± 0.0 % |" in text
    assert "| g32, other | 1.500 | 25.0 ± 0.0 % | 50.0 ± 0.0 % |" in text


def test_rows_have_names_of_their_own() -> None:
    names = [variant.name for variant in VARIANTS]
    assert len(set(names)) == len(names) and set(PLAIN) <= set(names)


def test_a_choice_of_rows_keeps_what_they_are_paired_with() -> None:
    assert [variant.name for variant in chosen(["damping .1"])] == ["g32", "g32, damping .1"]
    assert chosen(None) == list(VARIANTS)
