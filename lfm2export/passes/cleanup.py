"""Canonical form: constants folded, Identities and dead code gone, duplicate subexpressions and constants merged.

    c = Constant(2); d = Cast(c)                      (nothing: the consumer reads one initializer)
    y = Identity(x); dead = Neg(x)            ->      x where y was read
    a = Cos(t); b = Cos(t)                            a where b was read
    y = Reshape(Neg(Squeeze(n)), [1])         ->      Neg(n), where n is one number already: a bound of a Slice

All but the last of it is onnxscript's and onnx-ir's work. Weights take no part: their initializers have no values to
fold.
"""

from __future__ import annotations

import logging
from typing import Any

import onnx_ir as ir
import onnxscript.optimizer
import onnxscript.rewriter
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    IdentityEliminationPass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
    TopologicalSortPass,
)
from onnxscript.rewriter import RewriteRuleClassBase, RewriteRuleSet


class _NegatedNumber(RewriteRuleClassBase):  # type: ignore[misc]
    def pattern(self, op: Any, number: Any, shape: Any) -> Any:
        return op.Reshape(op.Neg(op.Squeeze(number)), shape)

    def check(self, context: Any, number: ir.Value, shape: ir.Value) -> bool:
        return number.shape == (1,) and shape.const_value is not None and shape.const_value.shape == (1,)

    def rewrite(self, op: Any, number: ir.Value, shape: ir.Value) -> Any:
        return op.Neg(number)


#: What others read of the matched nodes stays; what nobody reads any more goes below.
_RULES = RewriteRuleSet([_NegatedNumber.rule(remove_nodes=False)])


def fold(model: ir.Model) -> None:
    """Fold constants into initializers and drop what nobody reads; nothing is merged, so that every node keeps its own
    module path.
    """
    for _ in range(2):  # what one round simplifies lets the next fold more; a third finds nothing
        onnxscript.optimizer.fold_constants(model, onnx_shape_inference=True)
        onnxscript.rewriter.rewrite(model)
    onnxscript.rewriter.rewrite(model, _RULES)
    IdentityEliminationPass()(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    RemoveUnusedNodesPass()(model)


def merge(model: ir.Model) -> None:
    """Equal constants and equal subexpressions become one; nodes in topological order."""
    # It warns about every initializer without values; ours are recipes.
    logging.getLogger("onnx_ir.passes.common.initializer_deduplication").setLevel(logging.ERROR)
    DeduplicateInitializersPass()(model)
    CommonSubexpressionEliminationPass()(model)
    RemoveUnusedNodesPass()(model)
    TopologicalSortPass()(model)
