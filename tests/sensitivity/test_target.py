"""A target against files that are only laid out: what is chosen fits, and what cannot be is refused with what can."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfm2export.errors import Lfm2ExportError
from lfm2export.matrices import Matrix
from lfm2export.recipes import Chosen, Options, Target
from lfm2export.sensitivity import Rated, Sensitivity
from lfm2export.sensitivity.formats import candidates, stored_bytes
from lfm2export.sensitivity.target import Selection, select
from lfm2export.weights import BlockFormat

PARAMETERS = 300_000
MATRICES = (
    Matrix(("model.layers.0.conv.in_proj.weight",), 384, 128, 0),
    Matrix(("model.layers.0.feed_forward.w1.weight", "model.layers.0.feed_forward.w3.weight"), 640, 128, 0),
    Matrix(("model.layers.0.feed_forward.w2.weight",), 128, 320, 0),
    Matrix(("model.embed_tokens.weight",), 1000, 128, None),
)
WEIGHTS = (3.0, 1.0, 2.0, 40.0)


def sensitivity() -> Sensitivity:
    rated = {
        matrix.parts: tuple(
            Rated(
                form, stored_bytes(matrix, form), weight * 1e-4 * _share(form), form.bits == 4 and form.block_size == 32
            )
            for form in candidates("search")
        )
        for matrix, weight in zip(MATRICES, WEIGHTS, strict=True)
    }
    return Sensitivity(MATRICES, rated, "a text", 4096)


def _share(form: BlockFormat) -> float:
    return (form.block_size / 32) ** 0.5 * (1.2 if form.symmetric else 1.0) / (1 if form.bits == 4 else 240)


def file_bytes(chosen: Chosen) -> int:
    """As a file has them: a graph, a name per zero point, and tensors that start on pages."""
    size = 50_000
    for matrix in MATRICES:
        form = chosen[matrix.parts]
        size += -(-stored_bytes(matrix, form) // 4096) * 4096 + (0 if form.symmetric else 300)
    return size


def selected(target: Target, options: Options | None = None) -> Selection:
    return select(sensitivity(), target, PARAMETERS, options or Options(), file_bytes)


@given(st.floats(0.219, 0.376))
@settings(max_examples=150, deadline=None)
def test_the_file_never_takes_more_than_the_target(megabytes: float) -> None:
    found = selected(Target(megabytes, "MB"))
    assert found.bytes == file_bytes(found.chosen) <= megabytes * 1e6
    assert set(found.chosen) == {matrix.parts for matrix in MATRICES}


def test_a_larger_target_costs_less() -> None:
    klds = [selected(Target(0.219 + step / 200, "MB")).kld for step in range(30)]
    assert klds == sorted(klds, reverse=True) and klds[-1] < klds[0] / 5


def test_bits_go_where_they_pay() -> None:
    """The table loses the most a byte: with room for one matrix in 8 bits, it is that one."""
    chosen = selected(Target(0.29, "MB")).chosen
    assert [chosen[matrix.parts].bits for matrix in MATRICES] == [4, 4, 4, 8]


@pytest.mark.parametrize("unit", ["MB", "bits per weight"])
def test_what_cannot_be_is_refused_with_what_can(unit: str) -> None:
    scale = 1.0 if unit == "MB" else 8e6 / PARAMETERS
    with pytest.raises(Lfm2ExportError, match="less than any choice takes") as low:
        selected(Target(0.1 * scale, unit))  # type: ignore[arg-type]
    with pytest.raises(Lfm2ExportError, match="more than the best choice takes") as high:
        selected(Target(2 * scale, unit))  # type: ignore[arg-type]
    for error in (low, high):
        least, greatest = map(float, re.search(r"possible are ([\d.]+) to ([\d.]+) ", str(error.value)).groups())  # type: ignore[union-attr]
        assert 0.1 * scale < least < greatest < 2 * scale
        for possible in (least, greatest):
            assert selected(Target(possible, unit)).bytes <= possible / scale * 1e6  # type: ignore[arg-type]
        assert selected(Target(least, unit)).kld > selected(Target(greatest, unit)).kld  # type: ignore[arg-type]


def test_a_table_that_the_lookup_cannot_read_is_not_chosen() -> None:
    """GatherBlockQuantized reads no 4-bit zero points."""
    asked = Options(lookup="gather_block_quantized")
    for megabytes in (0.219, 0.23, 0.25):
        chosen = selected(Target(megabytes, "MB"), asked).chosen[MATRICES[-1].parts]
        assert chosen.symmetric
    free = {selected(Target(0.219 + step / 500, "MB")).chosen[MATRICES[-1].parts].symmetric for step in range(30)}
    assert free == {True, False}


def test_it_describes_itself() -> None:
    found = selected(Target(0.25, "MB"))
    described = found.described()
    assert described["target"] == {"value": 0.25, "unit": "MB"}
    assert (described["text"], described["tokens"]) == ("a text", 4096)
    assert described["predicted_kld"] == pytest.approx(sum(row["kld"] for row in described["matrices"]), rel=1e-3)
    first = described["matrices"][0]
    assert first["name"] == "model.layers.0.conv.in_proj.weight" and first["parameters"] == 384 * 128
    form = found.chosen[MATRICES[0].parts]
    assert (first["bits"], first["block_size"], first["symmetric"]) == (form.bits, form.block_size, form.symmetric)
    assert first["kld_4_bit"] == pytest.approx(3e-4 * 1.2)  # the first 4-bit format that was measured
    assert f"predicted KLD {found.kld:.2g}, from 4096 tokens (a text)" in found.summary()


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_a_target_is_a_positive_number(value: float) -> None:
    with pytest.raises(Lfm2ExportError, match="expected a positive number"):
        Target(value, "MB")
