"""A whole folder: complete, reproducible, and every damage to it is found."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from lfm2export.errors import ArtifactError
from lfm2export.package import Provenance, read_inputs, write_package
from lfm2export.package.card import fill_parity
from lfm2export.package.manifest import check_manifest, library_versions, measure_file, read_manifest
from lfm2export.spec import parse_spec
from skeleton import write_skeleton
from tiny import tiny_config, write_companions

FILES = {
    "LICENSE",
    "NOTICE",
    "README.md",
    "build.json",
    "chat_template.jinja",
    "config.json",
    "genai_config.json",
    "generation_config.json",
    "onnx/model.onnx",
    "onnx/model.onnx_data",
    "onnx/model.onnx_data_1",
    "onnx/model_q4.onnx",
    "onnx/model_q4.onnx_data",
    "tokenizer.json",
    "tokenizer_config.json",
}


def build(folder: Path) -> Path:
    """A source at `folder`/source and its package at `folder`/out."""
    source, out = folder / "source", folder / "out"
    source.mkdir(parents=True)
    write_companions(source)
    (source / "LICENSE").rename(source / "LICENSE.txt")
    (source / "NOTICE").write_text("Made of numbers.")
    config = tiny_config()
    spec = parse_spec(config)
    models = {"q4": write_skeleton(out, spec, "q4"), "fp32": write_skeleton(out, spec, "fp32", chunks=2)}
    provenance = Provenance("tiny", None, None, {"model.safetensors": "b" * 64}, 40, {"fp32": {}, "q4": {"bits": 4}})
    write_package(out, read_inputs(source, config, spec), spec, models, provenance)
    return out


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return build(tmp_path)


def kinds(folder: Path) -> list[tuple[str, str]]:
    return [(problem.kind, problem.file) for problem in check_manifest(folder)]


def test_the_folder_is_complete_and_good(out: Path) -> None:
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == FILES
    seen: list[tuple[str, int, int | None, str]] = []
    assert check_manifest(out, lambda *step: seen.append(step)) == []
    assert {step[0] for step in seen} == {"hash"} and seen[-1][1] <= (seen[-1][2] or 0)
    manifest = read_manifest(out)
    assert manifest is not None
    assert set(manifest["files"]) == FILES - {"build.json"}
    assert manifest["models"]["fp32"]["chunks"] == 2 and manifest["models"]["fp32"]["file"] == "onnx/model.onnx"
    assert manifest["source"]["files"] == {"model.safetensors": "b" * 64}
    config = json.loads((out / "config.json").read_text())
    assert config["transformers.js_config"]["use_external_data_format"] == {"model.onnx": 2, "model_q4.onnx": 1}
    assert json.loads((out / "genai_config.json").read_text())["model"]["decoder"]["filename"] == "onnx/model_q4.onnx"


def test_two_packages_are_byte_identical_wherever_they_are_made(tmp_path: Path) -> None:
    first, second = build(tmp_path / "a"), build(tmp_path / "b" / "c")
    for name in FILES:
        content = (first / name).read_bytes()
        assert content == (second / name).read_bytes(), name
        assert str(tmp_path).encode() not in content, name


def test_every_damage_is_found(out: Path) -> None:
    (out / "LICENSE").unlink()
    (out / "config.json").write_text((out / "config.json").read_text().replace("512", "513"))
    with (out / "onnx" / "model.onnx_data").open("ab") as file:
        file.write(b"x")
    (out / "notes.txt").touch()
    assert kinds(out) == [
        ("missing", "LICENSE"),
        ("hash", "config.json"),
        ("size", "onnx/model.onnx_data"),
        ("extra", "notes.txt"),
    ]


def test_what_verify_writes_is_no_damage_and_the_rest_of_the_card_is(out: Path) -> None:
    for name in ("parity.json", "parity.md", "parity.html"):
        (out / name).write_text("measured")
    (out / ".git").mkdir()
    (out / ".git" / "HEAD").touch()
    card = (out / "README.md").read_text()
    (out / "README.md").write_text(fill_parity(card, "| a | table |"))
    assert check_manifest(out) == []
    (out / "README.md").write_text(card.replace("## License", "## Lizenz"))
    assert kinds(out) == [("hash", "README.md")]
    (out / "README.md").write_bytes(card.encode().replace(b"\n", b"\r\n"))
    assert kinds(out) == [("hash", "README.md")]
    (out / "README.md").write_bytes(b"\xff" + card.encode())
    assert kinds(out) == [("hash", "README.md")]


def test_a_damaged_manifest_is_refused(out: Path, tmp_path: Path) -> None:
    good = json.loads((out / "build.json").read_text())
    bad = [
        ("{", "not valid JSON"),
        (json.dumps(good | {"schema_version": 99}), "schema 99"),
        (json.dumps(good | {"files": {"../x": {"bytes": 1, "sha256": "a" * 64}}}), "inside the folder"),
        (json.dumps(good | {"files": {"/etc/passwd": {"bytes": 1, "sha256": "a" * 64}}}), "inside the folder"),
        (json.dumps(good | {"files": {"x": 5}}), "is a JSON number, expected an object"),
        (json.dumps(good | {"files": {"x": {"bytes": -1, "sha256": "a" * 64}}}), "no size and sha256"),
        (json.dumps(good | {"files": {"x": {"bytes": 1, "sha256": "a" * 63}}}), "no size and sha256"),
        (json.dumps(good | {"files": {"x": {"bytes": True, "sha256": "a" * 64}}}), "boolean, expected an integer"),
        (json.dumps(good | {"files": []}), "build.json.files is a JSON list, expected an object"),
        (json.dumps({"schema_version": 1}), "has no 'files'"),
        (json.dumps(good | {"source": "x"}), "source is a JSON string"),
        (json.dumps(good | {"source": {"repo_id": "../x"}}), "repo_id is '../x', expected owner/name"),
        (json.dumps(good | {"source": {"repo_id": 5}}), "repo_id is a JSON number"),
        (json.dumps(good | {"source": {"revision": "main; rm"}}), "expected the hash of a commit"),
        (json.dumps(good | {"source": {"files": {"x": "y"}}}), "is no sha256"),
        (json.dumps(good | {"models": {"q4": {"file": 5}}}), "file is a JSON number"),
        (json.dumps(good | {"recipe": [1]}), "recipe is a JSON list"),
        ("[1]", "holds a JSON list"),
    ]
    for text, message in bad:
        (out / "build.json").write_text(text)
        with pytest.raises(ArtifactError, match=message):
            check_manifest(out)
    (out / "build.json").unlink()
    assert read_manifest(out) is None
    with pytest.raises(ArtifactError, match=r"no build\.json"):
        check_manifest(out)


def test_no_link_out_of_the_folder_is_followed(out: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    (out / "LICENSE").rename(secret)
    (out / "LICENSE").symlink_to(secret)
    (problem,) = check_manifest(out)
    assert (problem.kind, problem.file) == ("missing", "LICENSE") and "is a link to" in problem.message
    (out / "build.json").rename(tmp_path / "build.json")
    (out / "build.json").symlink_to(tmp_path / "build.json")
    with pytest.raises(ArtifactError, match="is a link to"):
        read_manifest(out)


@pytest.mark.parametrize("change", ["link", "long"])
def test_a_card_is_read_like_any_text(out: Path, tmp_path: Path, change: str) -> None:
    card = out / "README.md"
    if change == "link":
        card.rename(tmp_path / "card")
        card.symlink_to(tmp_path / "card")
    else:
        os.truncate(card, 6 << 30)  # sparse: it takes no room on the disk
    (problem,) = check_manifest(out)
    assert problem.file == "README.md" and ("is a link to" if change == "link" else "more than") in problem.message
    with pytest.raises(ArtifactError):
        measure_file(out, "README.md")


def test_versions_name_code_and_not_wheels() -> None:
    assert "+" not in "".join(library_versions().values()) and set(library_versions()) >= {"torch", "onnx-ir"}


def test_a_base_model_without_template_or_licence(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    write_companions(source)
    for name in ("chat_template.jinja", "LICENSE", "generation_config.json", "tokenizer_config.json"):
        (source / name).unlink()
    config = tiny_config(eos_token_id=2)
    spec = parse_spec(config)
    write_package(
        out,
        read_inputs(source, config, spec),
        spec,
        {"q8": write_skeleton(out, spec, "q8")},
        Provenance("base", None, None, {}, 40, {"q8": {}}),
    )
    assert not (out / "chat_template.jinja").exists() and not (out / "LICENSE").exists()
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == 2
    assert "apply_chat_template" not in (out / "README.md").read_text()
    assert check_manifest(out) == []
    shutil.rmtree(out / "onnx")
    assert {kind for kind, _ in kinds(out)} == {"missing"}
