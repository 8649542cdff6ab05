"""Stacking layers gives the graph that tracing every layer gives: same nodes, same edges, same weights."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir
import pytest

from lfm2export import passes
from lfm2export.contract import LogitsMode
from lfm2export.errors import GraphError
from lfm2export.passes import cleanup
from lfm2export.spec import CONV, FULL_ATTENTION, ModelSpec
from lfm2export.stack import stack, template_spec
from lfm2export.weights import RECIPE
from passes.traces import ODD, SPEC, fused, structure, traced

SIX = (CONV, CONV, FULL_ATTENTION, CONV, FULL_ATTENTION, CONV)

#: Between them: last layers of either kind, tied and untied, biases, L 3 and 4, both kinds of logits.
SPECS: dict[str, tuple[ModelSpec, LogitsMode]] = {
    "mixed": (replace(SPEC, layer_types=SIX), "last"),
    "conv only; untied, biases, L_cache 4": (replace(ODD, layer_types=(CONV, CONV)), "all"),
    "attention only": (replace(SPEC, layer_types=(FULL_ATTENTION,) * 2), "last"),
}


def fused_whole(spec: ModelSpec, logits: LogitsMode) -> ir.Model:
    """The trace of every layer, fused; nothing is stacked."""
    model = traced(spec, logits)
    cleanup.fold(model)
    cleanup.merge(model)
    passes.run(model, spec, passes.fusions(logits))
    return model


@pytest.mark.parametrize("name", SPECS)
def test_stacked_layers_are_the_traced_layers(name: str) -> None:
    spec, logits = SPECS[name]
    stacked, whole = structure(fused(spec, logits)), structure(fused_whole(spec, logits))
    assert stacked == whole
    assert len(stacked) > 15 * spec.num_hidden_layers


def test_the_digest_sees_what_differs() -> None:
    """Positive controls: an attribute, an edge, a weight, a constant, an output."""
    base = fused(replace(SPEC, layer_types=SIX))
    digest = structure(base)
    assert digest == structure(base.clone())

    def changed(change: str) -> ir.Model:
        model = base.clone()
        nodes = {
            kind: [n for n in model.graph if n.op_type == kind] for kind in ("Mul", "ReduceSum", "MatMul", "Reshape")
        }
        if change == "attribute":
            nodes["ReduceSum"][-1].attributes["keepdims"] = ir.AttrInt64("keepdims", 1)
        elif change == "edge":
            first, second = nodes["Mul"][2].inputs[:2]
            nodes["Mul"][2].replace_input_with(0, second)
            nodes["Mul"][2].replace_input_with(1, first)
        elif change == "weight":
            value = nodes["MatMul"][5].inputs[1]
            assert value is not None
            nodes["MatMul"][5].replace_input_with(1, nodes["MatMul"][0].inputs[1])
        elif change == "constant":
            first, *others = [shape for n in nodes["Reshape"] if (shape := n.inputs[1]) and shape.const_value]
            nodes["Reshape"][0].replace_input_with(1, next(shape for shape in others if shape is not first))
        else:
            outputs = list(model.graph.outputs)
            model.graph.outputs.clear()
            model.graph.outputs.extend([outputs[0], outputs[2], outputs[1], *outputs[3:]])
        return model

    for change in ("attribute", "edge", "weight", "constant", "output"):
        assert structure(changed(change)) != digest, change


def test_the_template_has_one_layer_of_each_kind() -> None:
    assert template_spec(replace(SPEC, layer_types=SIX)).layer_types == (CONV, FULL_ATTENTION)
    assert template_spec(replace(SPEC, layer_types=(FULL_ATTENTION, CONV))).layer_types == (CONV, FULL_ATTENTION)
    assert template_spec(replace(SPEC, layer_types=(CONV,) * 3)).layer_types == (CONV,)
    assert template_spec(replace(ODD, layer_types=SIX)) == ODD


def folded_template() -> ir.Model:
    model = traced(SPEC)
    cleanup.fold(model)
    return model


def test_every_layer_has_its_own_weights_and_caches() -> None:
    spec = replace(SPEC, layer_types=SIX)
    model = folded_template()
    stack(model, spec)
    parts = [value.meta[RECIPE].parts for value in model.graph.initializers.values() if RECIPE in value.meta]
    assert sorted(parts) == sorted((name,) for name in spec.source_tensors())
    assert all(value.name == name for name, value in model.graph.initializers.items())
    assert len(model.graph.inputs) == 3 + 4 + 2 * 2 + 1 and len(model.graph.outputs) == 1 + 4 + 2 * 2


def test_a_layer_that_passes_two_values_on_is_refused() -> None:
    model = folded_template()
    inner = next(node for node in model.graph if node.op_type == "Sigmoid").outputs[0]
    logits = model.graph.outputs[0].producer()
    assert logits is not None
    model.graph.insert_before(logits, ir.node("Identity", [inner]))  # of no layer: it has no module path of one
    extra = logits.inputs[0]
    both = ir.node("Sum", [extra, extra, inner], metadata_props={"pkg.torch.onnx.name_scopes": "['', 'lm_head']"})
    model.graph.insert_before(logits, both)
    logits.replace_input_with(0, both.outputs[0])
    with pytest.raises(GraphError, match=r"template layer 0 passes \[.*\] on, expected exactly one hidden state"):
        stack(model, replace(SPEC, layer_types=SIX))


def test_a_template_without_an_embedding_is_refused() -> None:
    model = folded_template()
    table = model.graph.initializers["model.embed_tokens.weight"]
    del table.meta[RECIPE]
    with pytest.raises(GraphError, match="the traced graph has no embedding lookup"):
        stack(model, replace(SPEC, layer_types=SIX))


def test_a_layer_without_nodes_is_refused() -> None:
    model = folded_template()
    for node in model.graph:
        node.metadata_props.clear()
    with pytest.raises(GraphError, match=r"template layer 0 passes \[\] on"):
        stack(model, replace(SPEC, layer_types=SIX))
