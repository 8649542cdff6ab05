"""Many layers from few: the traced template holds one layer of each kind, and this repeats them in the spec's order.

    embed -> [conv 0] -> [attention 1] -> head     ->     embed -> [conv 0] -> [conv 1] -> [attention 2] -> ... -> head

Layers of one kind differ in their weights and caches alone, so tracing each of up to thirty costs time and finds
nothing; a test holds the stacked graph against the trace of the whole model.
"""

from __future__ import annotations

import re
from dataclasses import replace

import onnx_ir as ir

from lfm2export.contract import ONNX_TYPES, Cache, Tensor, caches
from lfm2export.errors import GraphError
from lfm2export.spec import CONV, FULL_ATTENTION, ModelSpec
from lfm2export.weights import RECIPE, SCOPES, Recipe

_LAYER = re.compile(r"model\.layers\.(\d+)")


def template_spec(spec: ModelSpec) -> ModelSpec:
    """`spec` cut down to one layer of each kind that it has."""
    kinds = tuple(kind for kind in (CONV, FULL_ATTENTION) if kind in spec.layer_types)
    return replace(spec, layer_types=kinds)


def graph_value(tensor: Tensor) -> ir.Value:
    """A graph input or output as the contract states it."""
    return ir.Value(
        name=tensor.name, shape=ir.Shape(tensor.shape), type=ir.TensorType(ir.DataType[ONNX_TYPES[tensor.dtype]])
    )


def stack(template: ir.Model, spec: ModelSpec) -> None:
    """Turn the trace of ``template_spec(spec)`` into the graph of `spec`, in place.

    Raises:
        GraphError: a template layer does not have exactly one hidden state going in and one coming out.
    """
    graph = template.graph
    kinds = template_spec(spec).layer_types
    bodies: list[list[ir.Node]] = [[] for _ in kinds]
    layer_of: dict[ir.Node, int] = {}
    for node in graph:
        layer = _layer_of(node, layer_of)
        if layer is not None:
            layer_of[node] = layer
            bodies[layer].append(node)
    embedding = _embedding_output(graph)
    outs = [_hidden_out(bodies[layer], layer) for layer in range(len(kinds))]
    ins = [embedding, *outs[:-1]]

    old_caches, new_caches = caches(template_spec(spec), "float32"), caches(spec, "float32")
    old_inputs = {str(value.name): value for value in graph.inputs}
    old_outputs = {str(value.name): value for value in graph.outputs}
    new_inputs = {cache.past.name: graph_value(cache.past) for cache in new_caches}
    presents: list[ir.Value] = []
    hidden = embedding
    first_of_kind: dict[int, int] = {}
    anchor = next(iter(outs[-1].uses())).node  # the final norm's first node
    for layer, kind in enumerate(spec.layer_types):
        body = kinds.index(kind)
        first_of_kind.setdefault(body, layer)
        mapping: dict[ir.Value, ir.Value] = {ins[body]: hidden}
        for old, new in zip(_of_layer(old_caches, body), _of_layer(new_caches, layer), strict=True):
            mapping[old_inputs[old.past.name]] = new_inputs[new.past.name]
        for node in bodies[body]:
            clone = _clone(node, mapping, graph, body, layer)
            graph.insert_before(anchor, clone)
        for old, new in zip(_of_layer(old_caches, body), _of_layer(new_caches, layer), strict=True):
            present = mapping[old_outputs[old.present.name]]
            present.name, present.shape = new.present.name, ir.Shape(new.present.shape)
            present.type = ir.TensorType(ir.DataType[ONNX_TYPES[new.present.dtype]])
            presents.append(present)
        hidden = mapping[outs[body]]

    for old in old_caches:  # what reads a template cache outside the layers reads sizes: any layer of the kind will do
        target = next(c for c in _of_layer(new_caches, first_of_kind[old.layer]) if c.kind == old.kind)
        ir.convenience.replace_all_uses_with(old_inputs[old.past.name], new_inputs[target.past.name])
    ir.convenience.replace_all_uses_with(outs[-1], hidden)
    logits = graph.outputs[0]
    graph.outputs.clear()
    graph.outputs.extend([logits, *presents])
    graph.remove([node for body in bodies for node in body], safe=True)
    for name, value in list(graph.initializers.items()):
        if _LAYER.search(name) and not value.uses():
            del graph.initializers[name]
    first = next(place for place, value in enumerate(graph.inputs) if value.name == old_caches[0].past.name)
    before, behind = list(graph.inputs[:first]), list(graph.inputs[first + len(old_caches) :])
    graph.inputs.clear()
    graph.inputs.extend([*before, *new_inputs.values(), *behind])


def _layer_of(node: ir.Node, known: dict[ir.Node, int]) -> int | None:
    """The layer in the node's module path; a node that folding made has none and belongs where its inputs come from."""
    if SCOPES in node.metadata_props:
        found = _LAYER.search(node.metadata_props[SCOPES])
        return int(found[1]) if found else None
    producers = [value.producer() for value in node.inputs if value is not None]
    return max((known[producer] for producer in producers if producer in known), default=None)


def _of_layer(all_caches: tuple[Cache, ...], layer: int) -> list[Cache]:
    return [cache for cache in all_caches if cache.layer == layer]


def _embedding_output(graph: ir.Graph) -> ir.Value:
    for node in graph:
        if node.op_type == "Gather" and node.inputs[0] is not None and RECIPE in node.inputs[0].meta:
            return node.outputs[0]
    raise GraphError("the traced graph has no embedding lookup")


def _hidden_out(body: list[ir.Node], layer: int) -> ir.Value:
    inside = set(body)
    found = [output for node in body for output in node.outputs if any(use.node not in inside for use in output.uses())]
    if len(found) != 1:
        names = [value.name for value in found]
        raise GraphError(f"template layer {layer} passes {names} on, expected exactly one hidden state")
    return found[0]


def _clone(node: ir.Node, mapping: dict[ir.Value, ir.Value], graph: ir.Graph, body: int, layer: int) -> ir.Node:
    """`node` of template layer `body` as one of `layer`: weights renamed, inputs mapped, outputs recorded."""
    inputs: list[ir.Value | None] = []
    for value in node.inputs:
        if value is not None and value not in mapping and f"model.layers.{body}." in str(value.name):
            mapping[value] = _layer_weight(value, graph, body, layer)
        inputs.append(mapping.get(value, value) if value is not None else None)
    clone = ir.node(
        node.op_type,
        inputs,
        attributes={name: attribute.value for name, attribute in node.attributes.items()},
        domain=node.domain,
        num_outputs=len(node.outputs),
        metadata_props={SCOPES: _LAYER.sub(f"model.layers.{layer}", node.metadata_props.get(SCOPES, ""))},
    )
    for old, new in zip(node.outputs, clone.outputs, strict=True):
        new.name = f"{old.name}.layer{layer}"
        new.shape, new.type, new.const_value = old.shape, old.type, old.const_value
        mapping[old] = new
    return clone


def _layer_weight(value: ir.Value, graph: ir.Graph, body: int, layer: int) -> ir.Value:
    name = str(value.name).replace(f"model.layers.{body}.", f"model.layers.{layer}.")
    if name in graph.initializers:
        return graph.initializers[name]
    recipe: Recipe = value.meta[RECIPE]
    new = ir.Value(name=name, shape=value.shape, type=value.type)
    new.meta[RECIPE] = replace(recipe, parts=(name,))
    graph.initializers.add(new)
    return new
