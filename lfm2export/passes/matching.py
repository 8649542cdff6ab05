"""What passes share: reading a graph backwards from an anchor, refusing with a reason, and emitting new nodes.

A pass is a function `(model, spec) -> Firing`. It walks over its anchor nodes, tries to match upwards with `expect`,
and either rewrites or records why not. `passes.run` compares the number of firings with what the spec demands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from lfm2export.weights import RECIPE, Recipe


class NoMatch(Exception):
    """This anchor is not the pattern; the message says where they differ."""


@dataclass
class Firing:
    """What a pass did: how often it rewrote, and the reasons of its refusals."""

    count: int = 0
    refusals: list[str] = field(default_factory=list)


def rewrite(model: ir.Model, anchor: str, attempt: Callable[[ir.Node, Builder], None]) -> Firing:
    """Call `attempt(node, builder)` on every node of type `anchor`; NoMatch is a refusal, returning is a firing."""
    firing = Firing()
    for node in list(model.graph):
        if node.op_type != anchor or node.graph is None:
            continue
        builder = Builder(model.graph, node)
        try:
            attempt(node, builder)
        except NoMatch as reason:
            firing.refusals.append(f"{anchor} {node.outputs[0].name}: {reason}")
        else:
            firing.count += 1
    return firing


class Builder:
    """Makes nodes and puts them before `anchor`, where everything that the anchor reads is at hand already."""

    def __init__(self, graph: ir.Graph, anchor: ir.Node) -> None:
        self.graph = graph
        self.anchor = anchor

    def __call__(
        self, op_type: str, *inputs: ir.Value | None, domain: str = "", name: str | None = None, **attributes: object
    ) -> ir.Value:
        """One node with one output; returns the output."""
        return self.many(op_type, inputs, 1, domain=domain, names=[name], **attributes)[0]

    def many(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        outputs: int,
        *,
        domain: str = "",
        names: Sequence[str | None] = (),
        **attributes: object,
    ) -> Sequence[ir.Value]:
        """One node with `outputs` outputs; returns them."""
        node = ir.node(
            op_type,
            inputs,
            attributes=attributes,  # type: ignore[arg-type]
            domain=domain,
            num_outputs=outputs,
            metadata_props=self.anchor.metadata_props,
        )
        for value, name in zip(node.outputs, names, strict=False):
            value.name = name
        self.graph.insert_before(self.anchor, node)
        return node.outputs

    def constant(self, array: np.ndarray | Sequence[int]) -> ir.Value:
        """A small constant as an initializer, named by its content so that equal ones are one."""
        data = np.asarray(array, dtype=np.int64) if not isinstance(array, np.ndarray) else array
        tag = "_".join(str(item) for item in data.reshape(-1)[:8].tolist())
        name = f"const.{data.dtype}.{'_'.join(map(str, data.shape)) or 'scalar'}.{tag}"
        existing = self.graph.initializers.get(name)
        if existing is not None and np.array_equal(existing.const_value.numpy(), data):  # type: ignore[union-attr]
            return existing
        tensor = ir.tensor(data, name=name)
        value = ir.Value(name=name, shape=ir.Shape(data.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def scalar_int(self, value: int) -> ir.Value:
        """An int64 constant without axes."""
        return self.constant(np.array(value, dtype=np.int64))

    def weight(self, name: str, recipe: Recipe) -> ir.Value:
        """An initializer made by `recipe`; the same name is the same weight."""
        existing = self.graph.initializers.get(name)
        if existing is not None:
            if existing.meta.get(RECIPE) != recipe:
                raise ValueError(f"two recipes for the initializer {name}")
            return existing
        value = ir.Value(name=name, shape=ir.Shape(recipe.shape), type=ir.TensorType(ir.DataType[recipe.dtype]))
        value.meta[RECIPE] = recipe
        self.graph.initializers.add(value)
        return value

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """`new` stands for `old` everywhere, as a graph output too, and takes over its name there."""
        if old.is_graph_output():
            name, shape, kind = old.name, old.shape, old.type
            old.name = f"{name}.replaced"
            new.name, new.shape, new.type = name, shape, kind
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def expect(value: ir.Value | None, op_type: str) -> ir.Node:
    """The node of type `op_type` that makes `value`.

    Raises:
        NoMatch: `value` is no such node's output.
    """
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != op_type:
        got = producer.op_type if producer is not None else "a graph input or initializer"
        raise NoMatch(
            f"expected {op_type} before {value.name if value is not None else 'an absent input'}, found {got}"
        )
    return producer


def operands(node: ir.Node, op_type: str) -> tuple[ir.Node, ir.Value]:
    """Of a commutative node's first two inputs, the one made by `op_type` and the other one."""
    left, right = node.inputs[:2]
    for value, other in ((left, right), (right, left)):
        producer = value.producer() if value is not None else None
        if producer is not None and producer.op_type == op_type and other is not None:
            return producer, other
    raise NoMatch(f"no input of {node.op_type} {node.outputs[0].name} is made by {op_type}")


def users(value: ir.Value, op_type: str) -> Iterator[ir.Node]:
    """Nodes of type `op_type` that read `value`."""
    for node in value.consumers():
        if node.op_type == op_type:
            yield node


def only_user(value: ir.Value, op_type: str) -> ir.Node:
    """The single node that reads `value`, which must be of type `op_type`."""
    found = value.consumers()
    if len(found) != 1 or found[0].op_type != op_type or value.is_graph_output():
        raise NoMatch(f"{value.name} is read by {[node.op_type for node in found]}, expected one {op_type}")
    return found[0]


def constant_array(value: ir.Value | None) -> np.ndarray:
    """The values of a constant."""
    if value is None or value.const_value is None:
        raise NoMatch(f"{value.name if value is not None else 'an absent input'} is no constant")
    return value.const_value.numpy()


def scalar(value: ir.Value | None) -> float:
    """The value of a constant with one element."""
    array = constant_array(value)
    if array.size != 1:
        raise NoMatch(f"expected one constant element, found {array.shape}")
    return float(array.reshape(-1)[0])


def require(condition: bool, reason: str) -> None:
    """Go on only if `condition` holds.

    Raises:
        NoMatch: it does not; `reason` says what is different.
    """
    if not condition:
        raise NoMatch(reason)


def require_ints(node: ir.Node, **wanted: list[int]) -> None:
    """The node's attributes are these integers (a single integer is a list of one).

    Raises:
        NoMatch: one is absent or another.
    """
    for name, values in wanted.items():
        attribute = node.attributes.get(name)
        got = None
        if attribute is not None:
            got = list(attribute.as_ints()) if attribute.type == ir.AttributeType.INTS else [attribute.as_int()]
        require(got == values, f"{name} of {node.op_type} {node.outputs[0].name} is {got}, expected {values}")


def slice_bounds(node: ir.Node) -> tuple[int, int, int]:
    """(start, end, axis) of a Slice with constant bounds along one axis and step 1."""
    start, end, axis, step = (constant_array(value).reshape(-1).tolist() for value in node.inputs[1:5])
    require(step == [1] and len(axis) == 1, f"{node.outputs[0].name} is no plain Slice of one axis")
    return start[0], end[0], axis[0]


def recipe_of(value: ir.Value | None) -> Recipe:
    """The recipe of a weight initializer."""
    if value is None or RECIPE not in value.meta:
        raise NoMatch(f"{value.name if value is not None else 'an absent input'} is no weight")
    recipe: Recipe = value.meta[RECIPE]
    return recipe


def remove_dead(model: ir.Model) -> None:
    """Drop nodes and initializers that nobody reads any more."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)
