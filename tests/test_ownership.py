"""What `--force` may delete, and what it must not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lfm2export.consumers.page_files import page_files
from lfm2export.errors import OutputError
from lfm2export.ownership import check_replaceable, edited_files, named
from staged import fill


def put(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")

    return write


def link(name: str, target: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return write


def manifest(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "build.json").write_text(text)

    return write


#: What else may lie in an artifact, and what the refusal names.
FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "notes": (put("notes.txt"), "(notes.txt)"),
    "weights": (put("model.safetensors"), "(model.safetensors)"),
    "a model of another dtype": (put("onnx/model_q8.onnx"), "(onnx/model_q8.onnx)"),
    "a checkpoint below": (put("checkpoints/1/model.safetensors"), "(checkpoints/)"),
    "an empty folder": (lambda folder: (folder / "later").mkdir(), "(later/)"),
    "history": (put(".git/HEAD"), "(.git/)"),
    "hidden file": (put(".gitattributes"), "(.gitattributes)"),
    "upload cache": (put(".cache/huggingface/x"), "(.cache/)"),
    "a page of somebody's own": (put("chat/my.html"), "(chat/my.html)"),
    "a link": (link("onnx/more", "/etc"), "(onnx/more)"),
    "a link in the place of a file": (link("config.json", "/etc/hostname"), "(config.json)"),
    "a pipe in the place of a report": (lambda folder: os.mkfifo(folder / "parity.md"), "(parity.md)"),
    "a folder in the place of a report": (put("parity.md/notes.txt"), "(parity.md/)"),
    "a name with a line break": (put("a\nb\x1b[2J"), "(a b [2J)"),
    "another tool's build.json": (manifest('{"steps": []}'), "build.json"),
    "another tool's, by its name": (
        manifest(json.dumps({"schema_version": 1, "tool": {"name": "other"}, "files": {}})),
        "another tool's",
    ),
    "no build.json": (lambda folder: (folder / "build.json").unlink(), "no build.json"),
    "a damaged build.json": (manifest("{"), "build.json"),
    "a build.json that lists what is outside": (
        manifest(
            json.dumps(
                {
                    "schema_version": 1,
                    "tool": {"name": "lfm2export"},
                    "files": {"../x": {"bytes": 1, "sha256": "0"}},
                }
            )
        ),
        "build.json",
    ),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_is_not_of_the_build_is_named_and_stays(case: str, tmp_path: Path) -> None:
    add, expected = FOREIGN[case]
    out = tmp_path / "out"
    fill(out, "old")
    add(out)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError) as caught:
        check_replaceable(out)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_the_tools_own_commands_add_is_theirs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out, "old")
    added = ["parity.json", "parity.md", "parity.html", "consumers.json", *(f"chat/{name}" for name in page_files())]
    assert "chat/index.html" in added and "chat/lib/LICENSE.transformers" in added
    killed = [".parity.json.0123abcd.lfm2export.partial", ".chat.lfm2export.partial/index.html"]
    for name in [*added, *killed]:
        put(name)(out)
    (out / "config.json").unlink()
    check_replaceable(out)


def test_a_folder_with_weights_and_notes_and_no_manifest(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "notes.txt", "onnx/model.onnx"):
        put(name)(tmp_path / "mine")
    with pytest.raises(OutputError) as caught:
        check_replaceable(tmp_path / "mine")
    assert "(config.json, model.safetensors, notes.txt, onnx/)" in str(caught.value)


def test_an_empty_folder_is_free(tmp_path: Path) -> None:
    check_replaceable(tmp_path)
    assert edited_files(tmp_path) == ()


def test_edited_files_are_those_that_are_not_as_built(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out, "old")
    assert edited_files(out) == ()
    (out / "config.json").write_text("new")
    (out / "onnx" / "model.onnx").unlink()
    (out / "parity.md").write_text("measured")
    with (out / "onnx" / "model.onnx_data").open("wb") as file:
        file.truncate(9 << 20)
    assert edited_files(out) == ("config.json", "onnx/model.onnx_data")


def test_many_names_are_counted() -> None:
    assert named(["a", "b", "c", "d"]) == "a, b, c, d"
    assert named(["a", "b", "c", "d", "e", "f"]) == "a, b, c, d and 2 more"
