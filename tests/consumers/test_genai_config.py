"""What onnxruntime-genai gets of a stranger's genai_config.json: known keys with known values, and nothing else."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lfm2export.consumers import ConsumerResult, Verdict, genai
from lfm2export.consumers.asked import Asked
from lfm2export.consumers.genai_config import CONFIG, read_checked
from lfm2export.contract import LogitsMode
from lfm2export.errors import ArtifactError
from lfm2export.package.genai import genai_config
from lfm2export.spec import parse_spec
from lfm2export.text.token_ids import TokenIds
from standin import CONFIG as SPEC

TOKENS = TokenIds(bos=1, eos=(7,), pad=0)


def written(folder: Path, place: str = "", value: Any = None) -> Path:
    """What we write, with `value` at `place` ("a.b.c")."""
    config = genai_config(parse_spec(SPEC), TOKENS, {}, ["q4"])
    if place:
        *parents, key = place.split(".")
        at = config
        for parent in parents:
            at = at[parent]
        at[key] = value
    path = folder / CONFIG
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def test_what_we_and_genais_builder_write_passes(tmp_path: Path) -> None:
    for place, value in (
        ("", None),
        ("model.eos_token_id", [7, 2]),
        ("model.decoder.conv_cache_size", 2),
        ("model.decoder.session_options.provider_options", [{"cpu": {}}]),
        ("search.min_p", 0.15),
    ):
        path = written(tmp_path, place, value)
        assert read_checked(path, tmp_path, parse_spec(SPEC)) == json.loads(path.read_text())


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("model.decoder.session_options.custom_ops_library", "evil.so"),
        ("model.decoder.session_options.enable_profiling", "/tmp/profile"),
        ("model.decoder.session_options.config_entries", {"session.optimized_model_filepath": "/tmp/x"}),
        ("model.decoder.session_options.ep.cuda.x", "1"),
        ("model.decoder.session_options.log_id", "\x1b[31m"),
        ("model.decoder.session_options.provider_options", [{"qnn": {"backend_path": "evil.so"}}]),
        ("model.decoder.session_options.provider_options", [{"cpu": {"backend_path": "evil.so"}}]),
        ("model.decoder.session_options.provider_options", [{"OpenVINO": {}}]),
        ("model.decoder.run_options", {"x": "y"}),
        ("model.decoder.pipeline", [{"m": {"filename": "/x"}}]),
        ("model.decoder.inputs.past_key_names", "%n%s"),
        ("model.decoder.inputs.embeddings", "x"),
        ("model.decoder.num_hidden_layers", 10**9),
        ("model.decoder.num_hidden_layers", True),
        ("model.decoder.layer_types", ["conv"]),
        ("model.decoder.filename", 5),
        ("model.decoder", []),
        ("model.vision", {"filename": "/x"}),
        ("model.type", "whisper"),
        ("model.eos_token_id", [10**9]),
        ("model.context_length", 1e3),
        ("search.num_beams", 10**9),
        ("search.temperature", "1"),
        ("search.guidance", {}),
        ("engine", {}),
        ("ep_library", "evil.so"),
        ("model", 5),
    ],
)
def test_a_key_or_value_that_is_not_on_the_list_is_named(tmp_path: Path, place: str, value: Any) -> None:
    options = place.startswith("model.decoder.session_options.ep.")  # a key with dots in it
    path = written(tmp_path, "" if options else place, value)
    if options:
        config = json.loads(path.read_text())
        config["model"]["decoder"]["session_options"]["ep.cuda.x"] = value
        path.write_text(json.dumps(config))
    with pytest.raises(ArtifactError) as caught:
        read_checked(path, tmp_path, parse_spec(SPEC))
    assert place in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["../../x.onnx", "/etc/passwd"])
def test_the_model_file_lies_inside(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match=r"genai_config\.json names the file"):
        read_checked(written(tmp_path, "model.decoder.filename", name), tmp_path, parse_spec(SPEC))


@pytest.mark.parametrize("content", ["[]", "{", "{}", '{"model": {}}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / CONFIG).write_text(content)
    with pytest.raises(ArtifactError, match=r"genai_config\.json"):
        read_checked(tmp_path / CONFIG, tmp_path, parse_spec(SPEC))


def test_genai_is_started_on_a_checked_copy_only(
    tiny_artifact: Callable[[LogitsMode], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault is that consumer's; else it gets a folder of ours, whose config is the checked one."""
    import shutil

    folder = Path(shutil.copytree(tiny_artifact("last"), tmp_path / "artifact"))
    asked = {"q4": Asked(folder, "q4")}
    seen: list[tuple[Path, dict[str, Any], list[str]]] = []

    def worker(command: Any, request: Any, *, timeout: float) -> tuple[list[Any], str]:
        room = Path(request["folder"])
        seen.append((room, json.loads((room / CONFIG).read_text()), sorted(path.name for path in room.iterdir())))
        assert (room / "onnx" / "model_q4.onnx").is_file()
        return [], "it says nothing"

    monkeypatch.setattr(genai.locate, "genai", lambda: Path(sys.executable))
    monkeypatch.setattr(genai, "run_worker", worker)
    path = folder / CONFIG
    good = json.loads(path.read_text())
    bad = json.loads(path.read_text())
    bad["model"]["decoder"]["session_options"]["custom_ops_library"] = "evil.so"
    path.write_text(json.dumps(bad))
    (found,) = genai.check_genai(folder, asked)
    assert isinstance(found, ConsumerResult) and found.verdict is Verdict.FAILED and not seen
    assert "session_options.custom_ops_library is not a key" in str(found.reason)
    path.write_text(json.dumps(good))
    genai.check_genai(folder, asked)
    ((room, config, names),) = seen
    assert room != folder and not room.exists() and config == good
    assert set(names) <= {CONFIG, "onnx", *genai.FILES} and "tokenizer.json" in names
