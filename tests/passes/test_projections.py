from __future__ import annotations

import pytest

from graphs import SPEC, assert_same_numbers, edited, fire, numbers, operators, parse, recipes, with_spec
from lfm2export.passes import projections
from lfm2export.spec import CONV, FULL_ATTENTION
from lfm2export.weights import Recipe

#: A lookup, one projection with a bias, one without, and the head on the table; H 32, V 40.
TIED = """
project (int64[B, S] ids, float[40, 32] table, float[48, 32] up, float[48] bias, float[32, 48] down)
    => (float[B, ROWS, 40] logits)
{
    embedded = Gather <axis = 0> (table, ids)
    up_transposed = Transpose <perm = [1, 0]> (up)
    wide = MatMul (embedded, up_transposed)
    biased = Add (wide, bias)
    down_transposed = Transpose <perm = [1, 0]> (down)
    narrow = MatMul (biased, down_transposed)
    SELECT
    head_transposed = Transpose <perm = [1, 0]> (HEAD)
    logits = MatMul (last, head_transposed)
}
"""
ALL = TIED.replace("SELECT", "last = Identity (narrow)").replace("ROWS", "S")
LAST = TIED.replace("SELECT", "zero = Constant <value_ints = [0]> ()\n    last = Gather <axis = 1> (narrow, zero)")
LAST = LAST.replace("ROWS", "1")
WEIGHTS = ["table", "up", "bias", "down"]
UNTIED = ALL.replace("float[48, 32] up,", "float[48, 32] up, float[40, 32] head,").replace("HEAD", "head")
FEEDS = {"ids": (numbers("ids", 2, 3) * 1000).astype("int64") % 40}


def test_the_tied_head_reads_the_table_as_the_lookup_does() -> None:
    text = edited(ALL, "HEAD", "table")
    before, after = parse(text, WEIGHTS), parse(text, WEIGHTS)
    firing = fire(after, projections.fuse)
    assert (firing.count, firing.refusals) == (3, [])
    count = operators(after)
    assert "Transpose" not in count and count["MatMul"] == 2 and count["Gemm"] == 1
    assert recipes(after) == {
        "table": Recipe(("table",), (40, 32)),
        "bias": Recipe(("bias",), (48,)),
        "up.transposed": Recipe(("up",), (32, 48), transpose=True),
        "down.transposed": Recipe(("down",), (48, 32), transpose=True),
    }
    assert_same_numbers(before, after, FEEDS, atol=5e-6)


def test_logits_of_one_row_have_a_static_shape() -> None:
    text = edited(LAST, "HEAD", "table")
    before, after = parse(text, WEIGHTS), parse(text, WEIGHTS)
    head = next(node for node in after.graph if node.outputs[0].name == "logits")
    assert head.inputs[0] is not None
    head.inputs[0].shape = type(after.graph.outputs[0].shape)(["B", 1, 32])  # type: ignore[misc]  # as traced
    assert fire(after, projections.fuse).count == 3
    assert "Concat" not in operators(after) and "Shape" not in operators(after)
    assert_same_numbers(before, after, FEEDS, atol=5e-6)


def test_an_untied_head_is_a_projection_like_the_others() -> None:
    before, after = parse(UNTIED, [*WEIGHTS, "head"]), parse(UNTIED, [*WEIGHTS, "head"])
    assert fire(after, projections.fuse, with_spec(tie_word_embeddings=False)).count == 3
    assert operators(after)["MatMul"] == 3 and "Gemm" not in operators(after)
    assert recipes(after)["head.transposed"] == Recipe(("head",), (32, 40), transpose=True)
    assert_same_numbers(before, after, FEEDS, atol=5e-6)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("up_transposed = Transpose <perm = [1, 0]> (up)", "up_transposed = Neg (up)", "expected Transpose before up_"),
        ("up_transposed = Transpose <perm = [1, 0]> (up)", "up_transposed = Transpose (narrow)", "narrow is no weight"),
        ("wide = MatMul (embedded, up_transposed)", "wide = MatMul (up_transposed, embedded)", "found Gather"),
    ],
)
def test_near_misses_are_refused(old: str, new: str, reason: str) -> None:
    model = parse(edited(edited(ALL, "HEAD", "table"), old, new), WEIGHTS)
    firing = projections.fuse(model, SPEC)
    assert firing.count == 2 and len(firing.refusals) == 1
    assert firing.refusals[0].startswith("MatMul wide: ") and reason in firing.refusals[0]
    assert "up" in recipes(model)


def test_expected() -> None:
    kinds = (CONV, FULL_ATTENTION, CONV)
    assert projections.expected(with_spec(layer_types=kinds)) == 2 * (2 + 3) + 1 * (4 + 3) + 1
