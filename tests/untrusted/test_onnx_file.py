"""ONNX files of a stranger: what is refused before a parser or a runtime sees it, and what is written again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lfm2export.errors import ArtifactError
from lfm2export.untrusted.onnx_file import MAX_FIELDS, MESSAGES, TEXTS, data_path, rewritten, scan


def model(*tensors: TensorProto, nodes: int = 1) -> onnx.ModelProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    chain = [helper.make_node("Identity", ["x"], [f"y{index}"]) for index in range(nodes)]
    return helper.make_model(helper.make_graph(chain, "g", [value], [value], list(tensors)))


def external(location: str | None = "w.bin", **entries: str) -> TensorProto:
    """A float tensor [2, 3] in another file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2, 3], data_location=TensorProto.EXTERNAL)
    for key, value in ({} if location is None else {"location": location} | entries).items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def inside(tensor: TensorProto) -> dict[str, onnx.ModelProto]:
    """The tensor wherever a model can hold one."""
    plain = model(tensor)
    attribute = model()
    attribute.graph.node[0].attribute.append(helper.make_attribute("value", tensor))
    listed = model()
    listed.graph.node[0].attribute.add(name="values", type=onnx.AttributeProto.TENSORS).tensors.append(tensor)
    branch = model()
    branch.graph.node[0].attribute.append(helper.make_attribute("body", plain.graph))
    sparse = model()
    sparse.graph.sparse_initializer.add().values.CopyFrom(tensor)
    function = model()
    function.functions.add(name="f").node.append(attribute.graph.node[0])
    training = model()
    training.training_info.add().algorithm.CopyFrom(plain.graph)
    return {"initializer": plain, "attribute": attribute, "list": listed, "branch": branch, "sparse": sparse,
            "function": function, "training": training}  # fmt: skip


def refs(made: onnx.ModelProto) -> list[str]:
    return [found.location for found in scan(made.SerializeToString(), "m.onnx")]


def test_every_message_of_the_format_is_known() -> None:
    """The tables say which fields are messages and which are texts, as onnx's own description does."""
    done: set[tuple[str, str]] = set()

    def visit(name: str, descriptor: Any) -> None:
        if (name, descriptor.full_name) in done:
            return
        done.add((name, descriptor.full_name))
        texts = {field.number for field in descriptor.fields if field.type == field.TYPE_STRING}
        data = {field.number for field in descriptor.fields if field.type != field.TYPE_STRING}
        assert texts <= set(TEXTS.get(name, ())), name
        assert name == "Leaf" or not data & set(TEXTS.get(name, ())), name
        inner = {field.number: field.message_type for field in descriptor.fields if field.message_type}
        assert set(MESSAGES[name]) == set(inner), name
        for number, found in inner.items():
            visit(MESSAGES[name][number], found)

    visit("Model", onnx.ModelProto.DESCRIPTOR)
    assert {name for name, _ in done} == set(MESSAGES)


@pytest.mark.parametrize("place", inside(external()))
def test_a_reference_is_found_and_changed_wherever_it_stands(place: str) -> None:
    made = inside(external(offset="8", length="24"))[place]
    assert refs(made) == ["w.bin"]
    data = rewritten(made.SerializeToString(), {"w.bin": "blobs/" + "a" * 200})
    assert refs(onnx.load_from_string(data)) == ["blobs/" + "a" * 200]
    assert rewritten(data, {"blobs/" + "a" * 200: "w.bin"}) == made.SerializeToString()


def test_values_in_the_file_can_be_left_out() -> None:
    large, small = np.arange(1000, dtype=np.float32), np.arange(4, dtype=np.int64)
    made = model(numpy_helper.from_array(large, "large"), numpy_helper.from_array(small, "small"))
    first, second = onnx.load_from_string(rewritten(made.SerializeToString(), weights=False)).graph.initializer
    assert (first.name, list(first.dims), first.raw_data) == ("large", [1000], b"")
    assert numpy_helper.to_array(second).tolist() == [0, 1, 2, 3]


def tensor(dims: list[int], raw: bytes) -> TensorProto:
    return TensorProto(name="w\x1b[31m", data_type=TensorProto.FLOAT, dims=dims, raw_data=raw)


def nested(depth: int) -> bytes:
    """A graph in a node in a graph ..., without a parser that would refuse it."""
    data = b""
    for _ in range(depth):
        for key in (0x32, 0x2A, 0x0A):  # a graph's field 1 is a node, its 5 an attribute, its 6 a graph
            data = bytes([key]) + _size(len(data)) + data
    return model().SerializeToString() + b"\x3a" + _size(len(data)) + data


def _size(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "holds no graph"),
    "text": (lambda: b"not a model", "no protobuf message"),
    "cut": (lambda: model().SerializeToString()[:-3], "ends too early"),
    "no graph": (lambda: onnx.ModelProto(ir_version=10).SerializeToString(), "holds no graph"),
    "not UTF-8": (lambda: model().SerializeToString().replace(b"Identity", b"Identi\xff\xfe"), "not UTF-8"),
    "no location": (lambda: model(external(None)).SerializeToString(), "has no location"),
    "negative offset": (lambda: model(external(offset="-1")).SerializeToString(), "offset '-1', expected a count"),
    "text for an offset": (lambda: model(external(offset="1e3")).SerializeToString(), "expected a count of bytes"),
    "huge offset": (lambda: model(external(offset="9" * 30)).SerializeToString(), "expected a count of bytes"),
    "length": (lambda: model(external(length="23")).SerializeToString(), "has 23 bytes, expected 24"),
    "negative dimension": (lambda: model(tensor([2, -3], b"")).SerializeToString(), r"has the shape \[2, -3\]"),
    "overflow": (lambda: model(tensor([1 << 62, 1 << 62], b"")).SerializeToString(), "has the shape"),
    "many axes": (lambda: model(tensor([1] * 5000, b"1234")).SerializeToString(), "more than 32 axes"),
    "raw data": (lambda: model(tensor([2, 3], b"12345")).SerializeToString(), "holds 5 bytes, expected 24"),
    "many nodes": (lambda: model().SerializeToString() + b"\x3a" + _size(6 * MAX_FIELDS)
                   + b"\x0a\x04\x0a\x00\x12\x00" * MAX_FIELDS, "more than 400,000 parts"),
    "deep": (lambda: nested(10_000), "nested too deeply"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_one_line_at_once(case: str) -> None:
    make, message = REFUSED[case]
    data = make()
    begin = time.process_time()
    with pytest.raises(ArtifactError, match=message) as caught:
        scan(data, "m.onnx")
    assert time.process_time() - begin < 2
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_a_key_twice_is_refused() -> None:
    twice = external(offset="0")
    twice.external_data.add(key="location", value="other")
    with pytest.raises(ArtifactError, match="states the 'location' of its external data twice"):
        refs(model(twice))


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a\x00b", "a\\b", "*/_ORT_MEM_ADDR_/*", "", ".", "c:x", "nul"])
def test_data_that_is_no_plain_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match=r"names the data file .*expected a plain name"):
        data_path(tmp_path / "onnx" / "model.onnx", name, tmp_path)


def test_links_lead_inside_the_artifact_or_into_its_blobs(tmp_path: Path) -> None:
    place, folder = tmp_path / "hub", tmp_path / "hub" / "snapshots" / "abc"
    (folder / "onnx").mkdir(parents=True)
    (place / "blobs").mkdir()
    for name, target in {"blob": "../../../blobs/1", "own": "../config.json", "out": "../../../secret"}.items():
        (folder / "onnx" / name).symlink_to(target)
    graph = folder / "onnx" / "model.onnx"
    for name in ("blob", "own", "absent"):
        assert data_path(graph, name, folder) == folder / "onnx" / name
    assert data_path(graph, "blob", folder / "onnx")
    with pytest.raises(ArtifactError, match=r"is a link to .*, outside"):
        data_path(graph, "out", folder)
