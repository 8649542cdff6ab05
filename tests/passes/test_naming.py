from __future__ import annotations

import onnx_ir as ir
import pytest

from graphs import SPEC, assert_same_numbers, fire, numbers, parse, recipes
from lfm2export.passes import naming
from lfm2export.weights import SCOPES

WEIGHT = "model.layers.0.feed_forward.w1.weight"
TEXT = f"""
main_graph (float[batch_size, sequence_length, 8] "past_conv.0", float[8, 8] "{WEIGHT}")
    => (float[batch_size, sequence_length, 8] logits, float[batch_size, sequence_length, 8] "present_conv.0")
{{
    val_3 = Constant <value_float = 2.0> ()
    val_4 = Constant <value_floats = [0.5, 0.25, 0.5, 0.25, 0.5, 0.25, 0.5, 0.25]> ()
    val_5 = Constant <value_floats = [0.5, 0.25, 0.5, 0.25, 0.5, 0.25, 0.5, 8.0]> ()
    val_7 = MatMul ("past_conv.0", "{WEIGHT}")
    val_8 = Mul (val_7, val_3)
    val_9 = Mul (val_8, val_4)
    "present_conv.0" = Mul (val_9, val_5)
    val_10, val_11, val_12 = LayerNormalization <axis = -1> (val_9, val_4)
    logits = Add (val_10, val_12)
}}
"""
MODULES = "['', 'model', 'model.model', 'model.model.layers.0', 'model.model.layers.0.feed_forward', '{}', 'linear']"


def named() -> ir.Model:
    model = parse(TEXT, [WEIGHT])
    for node in model.graph:
        node.doc_string = "where it came from"
        if node.op_type in ("MatMul", "Mul"):
            module = "model.model.layers.0.feed_forward.w1" if node.op_type == "MatMul" else "model.model.layers.0"
            node.metadata_props[SCOPES] = MODULES.format(module)
        if node.op_type == "Add":
            node.metadata_props[SCOPES] = "['', 'lm_head', 'linear']"
    model.graph.inputs[0].metadata_props["pkg.torch"] = "left by the exporter"
    next(iter(model.graph)).outputs[0].shape = ir.Shape(["s26", "s70", 8])
    return model


def test_nodes_and_values_are_called_after_their_modules() -> None:
    before, after = named(), named()
    assert fire(after, naming.fuse).count == 1 == naming.expected(SPEC)
    assert [node.name for node in after.graph] == [
        "/model/layers.0/feed_forward/w1/MatMul",
        "/model/layers.0/Mul",
        "/model/layers.0/Mul_1",
        "/model/layers.0/Mul_2",
        "/LayerNormalization",
        "/lm_head/Add",
    ]
    outputs = [value.name for node in after.graph for value in node.outputs]
    assert outputs == [
        "/model/layers.0/feed_forward/w1/MatMul_output_0",
        "/model/layers.0/Mul_output_0",
        "/model/layers.0/Mul_1_output_0",
        "present_conv.0",
        "/LayerNormalization_output_0",
        "",  # nobody reads it
        "/LayerNormalization_output_2",
        "logits",
    ]
    assert list(after.graph.initializers) == [
        WEIGHT,
        "const/float32[]/2.0",
        "const/float32[8]/0.5_0.25_0.5_0.25_0.5_0.25",
        "const/float32[8]/0.5_0.25_0.5_0.25_0.5_0.25_1",  # the same six first numbers
    ]
    assert all(key == value.name for key, value in after.graph.initializers.items())
    assert recipes(after) == recipes(before)
    assert_same_numbers(before, after, {"past_conv.0": numbers("past", 2, 3, 8)}, atol=0.0)


def test_nothing_of_the_tracer_is_left() -> None:
    model = named()
    fire(model, naming.fuse)
    proto = ir.to_proto(model)
    assert proto.graph.name == "lfm2" and not proto.graph.metadata_props
    assert {info.name for info in proto.graph.value_info} <= set(model.graph.initializers)
    for node in proto.graph.node:
        assert not node.doc_string and not node.metadata_props
    for info in [*proto.graph.input, *proto.graph.output]:
        assert not info.metadata_props
    assert b"pkg.torch" not in proto.SerializeToString() and b"s26" not in proto.SerializeToString()


def test_the_contract_keeps_its_names_and_symbols() -> None:
    """Near miss: inputs and outputs are not renamed, though nodes with module paths make them."""
    model = named()
    fire(model, naming.fuse)
    graph = model.graph
    assert [value.name for value in graph.inputs] == ["past_conv.0"]
    assert [value.name for value in graph.outputs] == ["logits", "present_conv.0"]
    for value in (*graph.inputs, *graph.outputs):
        assert [str(size) for size in value.shape or ()] == ["batch_size", "sequence_length", "8"]


@pytest.mark.parametrize("times", [2])
def test_a_second_run_changes_nothing_but_lost_paths(times: int) -> None:
    model = named()
    for _ in range(times):
        fire(model, naming.fuse)
    names = [node.name for node in model.graph]
    assert len(set(names)) == len(names) and names[0] == "/MatMul"
