"""What `inspect` finds in a folder, good or not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from lfm2export.errors import ArtifactError, SourceError
from lfm2export.inspection import MAX_PROBLEMS, ModelInspection, inspect_artifact
from lfm2export.package import Provenance, read_inputs, write_package
from lfm2export.package.graph import role_of
from lfm2export.spec import parse_spec
from skeleton import write_skeleton
from standin import write_standin
from tiny import tiny_config, write_companions

SPEC = parse_spec(tiny_config())


@pytest.fixture
def out(tmp_path: Path) -> Path:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    write_companions(source)
    models = {
        "fp32": write_skeleton(out, SPEC, "fp32", logits="all"),
        "q4f16": write_skeleton(out, SPEC, "q4f16", chunks=2),
    }
    write_package(
        out, read_inputs(source, tiny_config(), SPEC), SPEC, models, Provenance("tiny", None, None, {}, 40, {})
    )
    return out


def inspect(out: Path, dtype: str = "fp32") -> ModelInspection:
    return next(model for model in inspect_artifact(out).models if model.dtype == dtype)


def test_a_good_folder(out: Path) -> None:
    found = inspect_artifact(out)
    assert found.good and found.hashes == () and [model.dtype for model in found.models] == ["fp32", "q4f16"]
    full, half = found.models
    assert (full.logits, half.logits) == ("all", "last")
    assert (full.opsets[""], full.ir_version) == (21, 10)
    assert full.nodes - 1 == full.nodes_without_weight_casts == full.op_counts["Identity"]
    assert full.op_counts["Cast"] == 1
    assert full.bytes_by_role == {
        "scales and zero points": 128,
        "norms": 64,
        "embedding table": 1024,
        "attention": 256,
        "short convolution": 256,
        "feed forward": 512,
        "other": 16,
    }
    assert full.bytes_by_dtype == {"float32": 1104, "uint8": 1024, "float16": 128}
    assert full.bits_per_weight == pytest.approx(2256 * 8 / SPEC.num_parameters)
    assert [(chunk.name, chunk.bytes is not None) for chunk in half.chunks] == [
        ("model_q4f16.onnx_data", True),
        ("model_q4f16.onnx_data_1", True),
    ]
    assert json.loads(json.dumps(found.to_dict()))["good"] is True


def test_a_damaged_file_is_not_good_and_a_stray_one_is(out: Path) -> None:
    (out / "notes.txt").touch()
    assert inspect_artifact(out).good
    (out / "tokenizer.json").write_text("{}")
    found = inspect_artifact(out)
    assert not found.good and found.hashes is not None
    assert str(found.hashes[0]).startswith("tokenizer.json has 2 bytes")
    assert inspect_artifact(out, hashes=False).hashes is None


def test_what_commands_add_later_is_known(out: Path) -> None:
    for name in ("chat/index.html", "chat/lib/transformers.min.js", "parity.json", "consumers.json"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).touch()
    before = inspect_artifact(out).hashes
    (out / "chat" / "mine.html").touch()
    after = inspect_artifact(out).hashes
    assert before == () and after is not None
    assert [(problem.kind, problem.file) for problem in after] == [("extra", "chat/mine.html")]


def test_missing_and_short_data(out: Path) -> None:
    (out / "onnx" / "model_q4f16.onnx_data_1").unlink()
    (out / "onnx" / "model.onnx_data").write_bytes(b"short")
    assert inspect(out, "q4f16").problems == ("data file model_q4f16.onnx_data_1 is missing",)
    assert inspect(out).problems == ("data file model.onnx_data has 5 bytes, the graph reads up to 2256",)


def rewrite(out: Path, change: str, to: str) -> None:
    path = out / "onnx" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    text = model.SerializeToString()
    assert len(change) == len(to) and change.encode() in text
    path.write_bytes(text.replace(change.encode(), to.encode()))


def test_breaches_of_the_contract(out: Path) -> None:
    rewrite(out, "past_conv.0", "past_konv.0")
    rewrite(out, "batch_size", "batch_SIZE")
    problems = inspect(out).problems
    assert "input past_conv.0 is missing" in problems and "input past_konv.0 is not in the contract" in problems
    assert any(
        line.startswith("input input_ids is [batch_SIZE, sequence_length], expected [batch_size") for line in problems
    )


def test_the_dtype_of_caches_and_the_versions_are_checked(out: Path) -> None:
    (out / "onnx" / "model_fp16.onnx").write_bytes((out / "onnx" / "model.onnx").read_bytes())
    problems = inspect(out, "fp16").problems
    assert "input past_conv.0 is float32, expected float16" in problems
    assert "data file 0 is called model.onnx_data, expected model_fp16.onnx_data" in problems
    model = onnx.load(out / "onnx" / "model.onnx", load_external_data=False)
    model.ir_version = 11
    model.opset_import[0].version = 22
    onnx.save(model, out / "onnx" / "model.onnx")
    assert inspect(out).problems == ("opset is 22, expected 21", "IR version is 11, expected 10")


def test_a_data_file_outside_the_folder_is_missing(out: Path) -> None:
    rewrite(out, "model.onnx_data", "../../x.on_data")
    (out.parent / "x.on_data").write_bytes(b"x" * 4000)
    assert any("names the data file .../../x.on_data" in line.replace(chr(39), ".") for line in inspect(out).problems)


def test_a_folder_of_another_tool(tmp_path: Path) -> None:
    """No build.json, weights inside the model file."""
    found = inspect_artifact(write_standin(tmp_path / "other"))
    assert found.good and found.hashes is None and found.manifest is None
    assert found.models[0].chunks == () and found.models[0].problems == ()
    assert found.to_dict()["hashes"] is None


def test_what_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is not a folder"):
        inspect_artifact(tmp_path / "missing")
    (tmp_path / "config.json").write_text(json.dumps(tiny_config()))
    with pytest.raises(ArtifactError, match="no model file"):
        inspect_artifact(tmp_path)
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ArtifactError, match="not a readable ONNX model"):
        inspect_artifact(tmp_path)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("model.layers.0.attn.qkv_proj.MatMul.weight_Q4", "attention"),
        ("model.layers.0.attn.qkv_proj.MatMul.weight_scales", "scales and zero points"),
        ("model.layers.3.self_attn.out_proj.weight", "attention"),
        ("model.layers.0.conv.out_proj.weight", "short convolution"),
        ("model.layers.0.mlp.down_proj.weight", "feed forward"),
        ("model.layers.0.self_attn.k_layernorm.weight", "norms"),
        ("model.embedding_norm.weight", "norms"),
        ("lm_head.weight_zero_points", "scales and zero points"),
        ("lm_head.weight", "embedding table"),
        ("constant_7", "other"),
    ],
)
def test_roles(name: str, role: str) -> None:
    assert role_of(name) == role


def add(model: onnx.ModelProto, case: str) -> None:
    """One thing that a stranger's file may have, and that no reader chokes on."""
    graph = model.graph
    if case == "names with control characters":
        graph.input[0].name = "\x1b]0;owned\x07\nnext"
        graph.node[0].op_type = "\x1b[2JIdentity"
        graph.initializer[0].name = "w\r\n\u202e"
    elif case == "many nodes":
        graph.node.extend(helper.make_node("Identity", ["input_ids"], [f"n{index}"]) for index in range(90_000))
    elif case == "many kinds and long names":
        graph.node.extend(helper.make_node(f"{index}" * 20, ["input_ids"], ["x"]) for index in range(30_000))
    elif case == "many inputs":
        graph.input.extend(helper.make_tensor_value_info(f"i{index}", 1, ["n"]) for index in range(30_000))
    elif case == "many data files":
        for index in range(1_900):
            tensor = graph.initializer.add(name=f"w{index}", data_type=1, dims=[1], data_location=1)
            tensor.external_data.add(key="location", value=f"w{index}.bin")
    elif case == "weights inside":
        graph.initializer.append(numpy_helper.from_array(np.zeros(60_000_000, np.float32), "large"))
    elif case == "unknown types":
        graph.input[0].type.tensor_type.elem_type = 99
        graph.initializer.add(name="w", data_type=77, dims=[3])
        graph.output[0].type.sequence_type.elem_type.tensor_type.elem_type = 1
    elif case == "graphs inside each other":
        for _ in range(10):
            inner = onnx.GraphProto()
            inner.CopyFrom(graph)
            del graph.node[:]
            graph.node.append(helper.make_node("If", ["input_ids"], ["x"], then_branch=inner))


CASES = ("names with control characters", "many nodes", "many kinds and long names", "many inputs", "many data files",
         "weights inside", "unknown types", "graphs inside each other")  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_strangers_file_is_told_in_lines_at_once(out: Path, case: str) -> None:
    path = out / "onnx" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    add(model, case)
    path.write_bytes(model.SerializeToString())
    code = (
        "import sys, time; from pathlib import Path; from lfm2export.inspection import inspect_artifact\n"
        "from lfm2export.bench.memory import peak_resident_bytes  # a child inherits what getrusage tells\n"
        "begin = time.process_time(); found = inspect_artifact(Path(sys.argv[1]), hashes=False)\n"
        "print(time.process_time() - begin, (peak_resident_bytes() or 0) / 1e6)\n"
        "print(max(len(model.problems) for model in found.models), '\\x1b' in repr(found.models) or found.good)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    seconds, megabytes, problems, bad = ran.stdout.split()
    assert float(seconds) < 2 and float(megabytes) < 1024
    assert int(problems) <= MAX_PROBLEMS + 1
    assert bad == str(case in ("many nodes", "many kinds and long names", "weights inside", "graphs inside each other"))


def test_a_model_file_that_is_a_link_out_of_the_folder(out: Path, tmp_path: Path) -> None:
    path = out / "onnx" / "model.onnx"
    path.rename(tmp_path / "secret")
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(ArtifactError, match=r"model\.onnx is a link to .*secret, outside"):
        inspect_artifact(out)
