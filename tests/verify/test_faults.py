"""Planted faults: each is caught by the numbers, in fp32 and in q4, and the first failure says where to look."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import faults
from lfm2export.progress import silent
from lfm2export.verify.figures import CheckName, Verdict
from lfm2export.verify.file import FileChecks, Plan
from lfm2export.verify.results import FileResult

W2 = "model.layers.2.feed_forward.w2.weight"
OUT_PROJ = "model.layers.1.self_attn.out_proj.weight"
CONV_OUT = "model.layers.0.conv.out_proj.weight"
QK_NORM = f"model.layers.1.self_attn.{faults.QK_NORM}.heads"


@dataclass(frozen=True)
class Case:
    """The tiny model's layers are conv, attention, conv, attention. A fault shows in the first cache behind it.

    check: which one fails first in fp32; q4 has ARITHMETIC where fp32, its own exact copy, has FILE.
    """

    fault: faults.Plant
    check: CheckName
    tensor: str
    step: int | None = 0


CASES = {
    "swapped gate": Case(faults.swapped_gate(1), CheckName.FILE, "present_conv.2"),
    "swapped gate of the last layer": Case(faults.swapped_gate(3), CheckName.FILE, "logits"),
    "B and C exchanged": Case(faults.exchanged_b_and_c(2), CheckName.FILE, "present_conv.2"),
    "conv state one step stale": Case(faults.stale_conv_state(0), CheckName.FILE, "present_conv.0"),
    "conv state forgotten": Case(faults.forgotten_conv_state(2), CheckName.FILE, "present_conv.2", 1),
    "rotary off by one": Case(faults.rotary_off_by_one, CheckName.FILE, "present.1.key"),
    "rotary of queries off by one": Case(faults.rotary_of_queries_off_by_one(1), CheckName.FILE, "present_conv.2"),
    "eps 1e-6 for 1e-5 in the first norm": Case(faults.wrong_eps(0, 1e-6), CheckName.FILE, "present_conv.0"),
    "eps 1e-3": Case(faults.wrong_eps(1, 1e-3), CheckName.FILE, "present.1.key"),
    "transposed projection": Case(faults.transposed_projection(OUT_PROJ), CheckName.WEIGHTS, OUT_PROJ, None),
    "block scale off by 1.25": Case(faults.corrupted_scale(W2, 1.25), CheckName.WEIGHTS, W2, None),
    "block scale off by 4": Case(faults.corrupted_scale(W2, 4), CheckName.WEIGHTS, W2, None),
    "mask ignored": Case(faults.mask_ignored, CheckName.PADDING, "present.1.key", None),
    "KV heads mixed": Case(faults.mixed_key_value_heads(1), CheckName.FILE, "present.1.key"),
    "query heads mixed": Case(faults.mixed_query_heads(3), CheckName.FILE, "logits"),
    "logits of the wrong row": Case(faults.wrong_row, CheckName.FILE, "logits"),
    "attention scale": Case(faults.wrong_attention_scale(1), CheckName.FILE, "present_conv.2"),
    "QK norms exchanged": Case(faults.exchanged_norms(1), CheckName.FILE, "present.1.key"),
    "norm of a query head": Case(faults.wrong_norm_of_a_head(1, 1), CheckName.WEIGHTS, QK_NORM, None),
    "norm of a key head": Case(faults.wrong_norm_of_a_head(1, -1), CheckName.WEIGHTS, QK_NORM, None),
}


#: Every norm of the tiny model, and the first cache behind it.
NORMS = {
    "model.layers.0.ffn_norm": "present.1.key",
    "model.layers.1.operator_norm": "present.1.key",
    f"model.layers.1.self_attn.{faults.QK_NORM}": "present.1.key",
    "model.layers.1.ffn_norm": "present_conv.2",
    "model.layers.2.operator_norm": "present_conv.2",
    "model.layers.2.ffn_norm": "present.3.key",
    "model.layers.3.operator_norm": "present.3.key",
    f"model.layers.3.self_attn.{faults.QK_NORM}": "present.3.key",
    "model.layers.3.ffn_norm": "logits",
    "model.embedding_norm": "logits",
}


def verified(plan: Plan, folder: Path, dtype: str, fault: faults.Plant, to: Path) -> FileResult:
    shutil.copytree(folder, to)
    return FileChecks(replace(plan, folder=to), dtype, faults.plant(to, dtype, fault), silent).run()


@pytest.mark.parametrize("dtype", ["fp32", "q4"])
@pytest.mark.parametrize("name", CASES)
def test_a_planted_fault_is_caught_where_it_shows(
    plan: Plan, spoilable: Path, tmp_path: Path, dtype: str, name: str
) -> None:
    case = CASES[name]
    result = verified(plan, spoilable, dtype, case.fault, tmp_path / "spoiled")
    assert result.verdict is Verdict.FAILED
    first = result.failures[0]
    wanted = CheckName.ARITHMETIC if case.check is CheckName.FILE and dtype == "q4" else case.check
    assert first.check is wanted
    assert first.tensor is not None and first.tensor.startswith(case.tensor)
    assert first.step == case.step
    assert case.tensor in first.message


@pytest.mark.parametrize("dtype", ["fp32", "q8", "q4"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_wrong_eps_of_any_norm_is_caught(plan: Plan, spoilable: Path, tmp_path: Path, dtype: str, norm: str) -> None:
    result = verified(plan, spoilable, dtype, faults.wrong_eps_of(norm, 1e-6), tmp_path / "spoiled")
    failure = next(f for f in result.failures if f.check is CheckName.NORMS)
    assert failure.tensor == NORMS[norm]
    assert failure.got is not None and failure.limit is not None and failure.got > 10 * failure.limit
    assert "with a faint residual stream, where eps counts" in failure.message


#: Faults of products that round their activations: the check that catches each, and what its line names.
INT8 = {
    "one scale for all tokens": (faults.one_scale_for_all_tokens, CheckName.ROUNDING, "a product is off by"),
    "a neighbour's scale": (faults.scale_of_the_neighbour(0), CheckName.ROUNDING, "token"),
    "a neighbour's scale in the head": (faults.scale_of_the_neighbour(-1), CheckName.ROUNDING, "embed_tokens"),
    "zero point off by one": (faults.zero_point_off_by_one, CheckName.ROUNDING, "channel"),
    "a product without scales": (faults.forgotten_token_scale(OUT_PROJ), CheckName.ARITHMETIC, "present"),
    "what C owes": (faults.forgotten_debt(CONV_OUT), CheckName.ARITHMETIC, "present"),
    "what up owes": (faults.forgotten_debt(W2), CheckName.ARITHMETIC, "present"),
    "one scale of B and x": (faults.scale_taken_once, CheckName.ARITHMETIC, "present_conv.0"),
    "exchanged channel scales": (faults.exchanged_channel_scales(OUT_PROJ), CheckName.WEIGHTS, OUT_PROJ),
    "a code off by two": (faults.code_off_by_two(OUT_PROJ), CheckName.WEIGHTS, f"{OUT_PROJ}"),
}


@pytest.mark.parametrize("name", INT8)
def test_a_fault_of_rounded_activations_is_caught(plan: Plan, spoilable: Path, tmp_path: Path, name: str) -> None:
    fault, check, named = INT8[name]
    result = verified(plan, spoilable, "q8", fault, tmp_path / "spoiled")
    failure = next(f for f in result.failures if f.check is check)
    assert named in failure.message
    if check is CheckName.WEIGHTS:  # the copy without rounding is PyTorch on the file's own weights, whatever they are
        assert next(c for c in result.checks if c.name is CheckName.ARITHMETIC).verdict is Verdict.PASSED


@pytest.mark.parametrize("dtype", ["fp32", "q4"])
def test_what_is_before_a_fault_is_said_to_agree(plan: Plan, spoilable: Path, tmp_path: Path, dtype: str) -> None:
    result = verified(plan, spoilable, dtype, faults.swapped_gate(1), tmp_path / "spoiled")
    assert "present.1.value still agrees" in result.failures[0].message
    assert "step 0" in result.failures[0].message


def test_a_wrong_block_is_named_by_row_and_columns(plan: Plan, spoilable: Path, tmp_path: Path) -> None:
    result = verified(plan, spoilable, "q4", faults.corrupted_scale(W2, 1.25), tmp_path / "spoiled")
    assert f"first {W2}, row 3, block 1 (columns 32 to 63)" in result.failures[0].message
    assert result.failures[0].layer == 2
    # The graph is right, and PyTorch on the file's own weights, wrong as they are, says so.
    assert next(c for c in result.checks if c.name is CheckName.ARITHMETIC).verdict is Verdict.PASSED


@pytest.mark.parametrize("dtype", ["fp32", "q8", "q4"])
def test_the_unspoiled_copy_passes(plan: Plan, spoilable: Path, tmp_path: Path, dtype: str) -> None:
    result = verified(plan, spoilable, dtype, lambda patient: None, tmp_path / "copy")
    assert result.verdict is Verdict.PASSED, result.failures
