"""Faults to plant in a model file: its graph, or its data. Nothing else is made to fit; hashes are left as they are.

Each takes the folder of a copied artifact and the dtype, and rewrites onnx/NAME or its data in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from lfm2export.contract import MODEL_FILES
from lfm2export.quant import quantize
from lfm2export.verify.stored import Raw, read_stored

Plant = Callable[["Patient"], None]

#: The weights of query and key norm, which one initializer holds.
QK_NORM = "q_layernorm.weight+k_layernorm"


@dataclass
class Patient:
    """One model file to spoil: its graph by name, and its weights as bytes on disk."""

    path: Path
    model: onnx.ModelProto

    @property
    def graph(self) -> onnx.GraphProto:
        return self.model.graph

    def node(self, op_type: str, *within: str) -> NodeProto:
        """The first node of that type whose name holds all of `within`."""
        return next(n for n in self.graph.node if n.op_type == op_type and all(part in n.name for part in within))

    def maker(self, value: str) -> NodeProto:
        return next(node for node in self.graph.node if value in node.output)

    def readers(self, value: str) -> list[NodeProto]:
        return [node for node in self.graph.node if value in node.input]

    def constant(self, array: np.ndarray) -> str:
        name = f"fault/{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def before(self, node: NodeProto, op_type: str, inputs: list[str], **attributes: Any) -> str:
        """A new node in front of `node`; its output."""
        output = f"fault/{len(self.graph.node)}"
        made = helper.make_node(op_type, inputs, [output], name=output, **attributes)
        self.graph.node.insert(list(self.graph.node).index(node), made)
        return output

    def swap(self, nodes: list[NodeProto], one: str, other: str) -> None:
        """Read `other` for `one` and the reverse in `nodes`."""
        names = {one: other, other: one}
        for node in nodes:
            for number, name in enumerate(node.input):
                node.input[number] = names.get(name, name)

    def raw(self, name: str) -> Raw:
        return read_raw(self.model, self.path.parent, name)

    def write(self, name: str, array: np.ndarray) -> None:
        """Overwrite an initializer's data where it lies."""
        raw = self.raw(name)
        assert raw.path is not None and raw.shape == array.shape and raw.dtype == array.dtype.name
        with raw.path.open("r+b") as file:
            file.seek(raw.offset)
            file.write(np.ascontiguousarray(array).tobytes())

    def read(self, name: str) -> np.ndarray:
        raw = self.raw(name)
        return raw.rows(0, raw.shape[0]).copy()


def read_raw(model: onnx.ModelProto, folder: Path, name: str) -> Raw:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    dtype = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.UINT8: "uint8",
             TensorProto.INT8: "int8"}[tensor.data_type]  # fmt: skip
    return Raw(name, dtype, tuple(tensor.dims), folder / entries["location"], int(entries["offset"]), None)


def opened(folder: Path, dtype: str) -> Patient:
    """The file of `dtype` in `folder`, to read."""
    path = folder / "onnx" / MODEL_FILES[dtype]
    return Patient(path, onnx.load(str(path), load_external_data=False))


def plant(folder: Path, dtype: str, fault: Plant) -> Path:
    """Spoil the file of `dtype` in `folder`; its path."""
    patient = opened(folder, dtype)
    fault(patient)
    patient.path.write_bytes(patient.model.SerializeToString())
    return patient.path


def swapped_gate(layer: int) -> Plant:
    """silu(w3 x) * w1 x for silu(w1 x) * w3 x."""

    def fault(p: Patient) -> None:
        down = next(n for n in p.graph.node if any(f"layers.{layer}.feed_forward.w2" in name for name in n.input)
                    and n.op_type in ("MatMul", "MatMulNBits"))  # fmt: skip
        product = p.maker(down.input[0])
        activated = next(p.maker(name) for name in product.input if p.maker(name).op_type in ("QuickGelu", "Mul"))
        gate, up = activated.input[0], next(name for name in product.input if name not in activated.output)
        sigmoid = [node for node in p.readers(gate) if node.op_type == "Sigmoid"]
        p.swap([product, activated, *sigmoid], gate, up)

    return fault


def exchanged_b_and_c(layer: int) -> Plant:
    def fault(p: Patient) -> None:
        where = f"layers.{layer}/conv/"
        B, C, _ = p.node("Split", where).output
        p.swap([node for node in p.graph.node if node.op_type == "Mul" and where in node.name], B, C)

    return fault


def stale_conv_state(layer: int) -> Plant:
    """The state that goes out is the one before the last token; where the states of all layers are one, all of them."""

    def fault(p: Patient) -> None:
        gather = p.maker(f"present_conv.{layer}")
        while not gather.op_type.startswith("Gather"):
            gather = p.maker(gather.input[0])
        earlier = p.before(gather, "Sub", [gather.input[1], p.constant(np.array(1, np.int64))])
        gather.input[1] = p.before(gather, "Max", [earlier, p.constant(np.array(0, np.int64))])

    return fault


def forgotten_conv_state(layer: int) -> Plant:
    """The convolution starts from zeros at every step; a prefill is right."""

    def fault(p: Patient) -> None:
        past = f"past_conv.{layer}"
        (reader,) = p.readers(past)
        held = next(v for v in p.graph.input if v.name == past).type.tensor_type.elem_type
        zero = np.array(0, helper.tensor_dtype_to_np_dtype(held))
        reader.input[list(reader.input).index(past)] = p.before(reader, "Mul", [past, p.constant(zero)])

    return fault


def rotary_off_by_one(p: Patient) -> None:
    first = p.readers("position_ids")[0]
    shifted = p.before(first, "Add", ["position_ids", p.constant(np.array(1, np.int64))])
    for node in p.readers("position_ids"):
        if shifted not in node.output:
            p.swap([node], "position_ids", shifted)


def rotary_of_queries_off_by_one(layer: int) -> Plant:
    """Queries alone turn with the row before theirs; keys, and so every cache, stay right up to this layer."""

    def fault(p: Patient) -> None:
        attention = p.node("GroupQueryAttention", f"layers.{layer}/")
        split = p.maker(attention.input[0])
        rotary = p.maker(split.input[0])
        heads, places, *angles = rotary.input
        earlier = p.before(split, "Sub", [places, p.constant(np.array(1, np.int64))])
        earlier = p.before(split, "Max", [earlier, p.constant(np.array(0, np.int64))])
        turned = p.before(split, "RotaryEmbedding", [heads, earlier, *angles], domain=rotary.domain)
        zero, one, last = (p.constant(np.array([number], np.int64)) for number in (0, 1, -1))
        width = p.before(attention, "Slice", [split.input[1], zero, one])
        attention.input[0] = p.before(attention, "Slice", [turned, zero, width, last])

    return fault


def wrong_eps(layer: int, eps: float) -> Plant:
    def fault(p: Patient) -> None:
        nodes = [n for n in p.graph.node if "LayerNormalization" in n.op_type and f"layers.{layer}/" in n.name]
        for node in nodes:
            next(a for a in node.attribute if a.name == "epsilon").f = eps

    return fault


def wrong_eps_of(norm: str, eps: float) -> Plant:
    """Of one norm, by its weight's name; of query and key, by the name that they share."""

    def fault(p: Patient) -> None:
        (node,) = (*p.readers(f"{norm}.weight"), *(p.maker(n.input[0]) for n in p.readers(f"{norm}.heads")))
        next(a for a in node.attribute if a.name == "epsilon").f = eps

    return fault


def transposed_projection(part: str) -> Plant:
    """A square matrix stored the other way round; a quantized one is quantized anew."""

    def fault(p: Patient) -> None:
        if f"{part}.transposed" in {tensor.name for tensor in p.graph.initializer}:
            p.write(f"{part}.transposed", p.read(f"{part}.transposed").T)
            return
        stored = _stored(p, f"{part}.codes")
        again = quantize(np.ascontiguousarray(stored.floats(0, stored.shape[0]).T), stored.format)
        p.write(f"{part}.codes", again.codes)
        p.write(f"{part}.scales", again.scales)
        if again.zero_points is not None:
            p.write(f"{part}.zero_points", again.zero_points)

    return fault


def corrupted_scale(part: str, factor: float) -> Plant:
    """One block's scale; where there are no blocks, 32 values in a row."""

    def fault(p: Patient) -> None:
        names = {tensor.name for tensor in p.graph.initializer}
        if f"{part}.scales" in names:
            scales = p.read(f"{part}.scales")
            scales[3, 1] *= np.float16(factor)
            p.write(f"{part}.scales", scales)
        else:
            values = p.read(f"{part}.transposed")
            values[32:64, 3] *= np.float32(factor)
            p.write(f"{part}.transposed", values)

    return fault


def mask_ignored(p: Patient) -> None:
    """All ones, of the mask's shape."""
    first = p.readers("attention_mask")[0]
    shape = p.before(first, "Shape", ["attention_mask"])
    ones = p.before(first, "ConstantOfShape", [shape], value=helper.make_tensor("one", TensorProto.INT64, [1], [1]))
    for node in p.readers("attention_mask"):
        if shape not in node.output:
            p.swap([node], "attention_mask", ones)


def mixed_key_value_heads(layer: int) -> Plant:
    """The heads of the keys in reverse order; those of the values as they are."""

    def fault(p: Patient) -> None:
        attention = p.node("GroupQueryAttention", f"layers.{layer}/")
        heads = next(a.i for a in attention.attribute if a.name == "kv_num_heads")
        size = next(v for v in p.graph.input if v.name == f"past_key_values.{layer}.key").type.tensor_type.shape.dim[3]
        order = np.arange(heads * size.dim_value).reshape(heads, -1)[::-1].reshape(-1)
        attention.input[1] = p.before(attention, "Gather", [attention.input[1], p.constant(order)], axis=2)

    return fault


def mixed_query_heads(layer: int) -> Plant:
    """Queries find the key heads of another group; the caches of this layer stay right."""

    def fault(p: Patient) -> None:
        attention = p.node("GroupQueryAttention", f"layers.{layer}/")
        heads = next(a.i for a in attention.attribute if a.name == "num_heads")
        size = next(v for v in p.graph.input if v.name == f"past_key_values.{layer}.key").type.tensor_type.shape.dim[3]
        order = np.roll(np.arange(heads * size.dim_value).reshape(heads, -1), heads // 2, axis=0).reshape(-1)
        attention.input[0] = p.before(attention, "Gather", [attention.input[0], p.constant(order)], axis=2)

    return fault


def wrong_row(p: Patient) -> None:
    """Logits of the token before the last."""
    expand = next(p.maker(node.input[1]) for node in p.graph.node if node.op_type == "GatherElements"
                  and p.maker(node.input[1]).op_type == "Expand" and node.output[0] not in _outputs(p)
                  and "out_proj" in node.name)  # fmt: skip
    earlier = p.before(expand, "Sub", [expand.input[0], p.constant(np.array(1, np.int64))])
    expand.input[0] = p.before(expand, "Max", [earlier, p.constant(np.array(0, np.int64))])


def wrong_attention_scale(layer: int) -> Plant:
    """1 / D for 1 / sqrt(D)."""

    def fault(p: Patient) -> None:
        attention = p.node("GroupQueryAttention", f"layers.{layer}/")
        scale = [a for a in attention.attribute if a.name == "scale"]
        size = next(v for v in p.graph.input if v.name == f"past_key_values.{layer}.key").type.tensor_type.shape.dim[3]
        for attribute in scale:
            attention.attribute.remove(attribute)
        attention.attribute.append(helper.make_attribute("scale", 1.0 / size.dim_value))

    return fault


def exchanged_norms(layer: int) -> Plant:
    """The weights of query and key norm."""

    def fault(p: Patient) -> None:
        (scale,) = p.readers(f"model.layers.{layer}.self_attn.{QK_NORM}.heads")
        attention = p.node("GroupQueryAttention", f"layers.{layer}/")
        heads, kv_heads = (next(a.i for a in attention.attribute if a.name == n) for n in ("num_heads", "kv_num_heads"))
        others = p.constant(np.array([heads] * heads + [0] * kv_heads))
        scale.input[1] = p.before(scale, "Gather", [scale.input[1], others], axis=0)

    return fault


def wrong_norm_of_a_head(layer: int, head: int) -> Plant:
    """The weight of the norm of one head of queries and keys."""

    def fault(p: Patient) -> None:
        name = f"model.layers.{layer}.self_attn.{QK_NORM}.heads"
        weights = p.read(name)
        weights[head] *= 1.25
        p.write(name, weights)

    return fault


def one_scale_for_all_tokens(p: Patient) -> None:
    """The largest scale of the step, as DynamicQuantizeLinear has it."""
    for rounding in [node for node in p.graph.node if node.op_type == "QuantizeLinear"]:
        squeeze = p.maker(rounding.input[1])
        scale = squeeze.input[0]
        largest = p.before(squeeze, "ReduceMax", [scale], keepdims=1)
        shape = p.before(squeeze, "Shape", [scale])
        shared = p.before(squeeze, "Expand", [largest, shape])
        p.swap([node for node in p.readers(scale) if node.op_type in ("Squeeze", "Mul", "Reshape")], scale, shared)


def forgotten_token_scale(part: str) -> Plant:
    """What reads the product of `part` takes it without the scales of its tokens."""

    def fault(p: Patient) -> None:
        product = next(node for node in p.graph.node if f"{part}.int8" in node.input)
        scaling = next(node for node in p.readers(product.output[0]) if node.op_type == "Mul")
        scale = next(name for name in scaling.input if name != product.output[0])
        scaling.input[list(scaling.input).index(scale)] = p.constant(np.array(1, np.float32))

    return fault


def forgotten_debt(part: str) -> Plant:
    """The product of `part` reads tokens without their scales, and is not multiplied by those either."""

    def fault(p: Patient) -> None:
        product = next(node for node in p.graph.node if f"{part}.int8" in node.input)
        scaling = next(node for node in p.readers(product.output[0]) if node.op_type == "Mul")
        both = p.maker(next(name for name in scaling.input if name != product.output[0]))
        own = p.maker(p.maker(product.input[0]).input[1]).input[0]
        assert both.op_type == "Mul" and own in both.input
        scaling.input[list(scaling.input).index(both.output[0])] = own

    return fault


def scale_taken_once(p: Patient) -> None:
    """B and x of the first convolution both lack their scale, and their product is multiplied by it once."""
    square = next(node for node in p.graph.node if node.op_type == "Mul" and node.input[0] == node.input[1])
    square.input[1] = p.constant(np.array(1, np.float32))


def scale_of_the_neighbour(number: int) -> Plant:
    """Of one rounding: each token is rounded with the next one's scale, and multiplied with its own."""

    def fault(p: Patient) -> None:
        rounding = [node for node in p.graph.node if node.op_type == "QuantizeLinear"][number]
        scale = rounding.input[1]
        first, one, end = (p.constant(np.array([place], np.int64)) for place in (0, 1, 2**31))
        rest, head = (p.before(rounding, "Slice", [scale, *cut]) for cut in ((one, end), (first, one)))
        rounding.input[1] = p.before(rounding, "Concat", [rest, head], axis=0)

    return fault


def zero_point_off_by_one(p: Patient) -> None:
    """Of one product: codes lie around 128, and 127 is taken off them."""
    product = [node for node in p.graph.node if node.op_type == "MatMulIntegerToFloat"][3]
    product.input[4] = p.constant(np.array(127, np.uint8))


def exchanged_channel_scales(part: str) -> Plant:
    """Of two output channels."""

    def fault(p: Patient) -> None:
        scales = p.read(f"{part}.channel_scales")
        scales[[3, 5]] = scales[[5, 3]]
        p.write(f"{part}.channel_scales", scales)

    return fault


def code_off_by_two(part: str) -> Plant:
    """One int8 code, which is then not the nearest."""

    def fault(p: Patient) -> None:
        codes = p.read(f"{part}.int8")
        codes[7, 3] -= np.sign(codes[7, 3]) * 2
        p.write(f"{part}.int8", codes)

    return fault


def _outputs(p: Patient) -> set[str]:
    return {value.name for value in p.graph.output}


def _stored(p: Patient, name: str) -> Any:
    from lfm2export.spec import parse_spec, read_config

    spec = parse_spec(read_config(p.path.parent.parent))
    return read_stored(p.model, p.path.parent, spec).weights[name]
