"""A stranger's source: nothing that runs code is published, nothing of training survives, no name is markup."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from lfm2export.errors import SourceError
from lfm2export.package import PackageInputs, Provenance, read_inputs, write_package
from lfm2export.package.card import PARITY_BEGIN, fill_parity
from lfm2export.package.front_matter import SourceCard, dump, front_matter, read_source_card
from lfm2export.package.manifest import check_manifest, read_manifest
from lfm2export.package.plain import MAX_NAMED, named
from lfm2export.spec import parse_spec
from skeleton import write_skeleton
from tiny import CHAT_TEMPLATE, tiny_config, write_companions

CODE = {"AutoModelForCausalLM": "someone/else--modeling.Model"}
EXECUTABLE = {
    "auto_map": CODE,
    "custom_pipelines": {"chat": {"impl": "pipe.Chat", "pt": ["AutoModelForCausalLM"]}},
    "trust_remote_code": True,
    "_commit_hash": "0" * 40,
    "_attn_implementation": "someone/kernels",
    "_attn_implementation_autoset": True,
    "compression_config": {"format": "pack"},
    "quantization": {"group_size": 64, "bits": 4},
    "something_new": {"deep": {"auto_map": CODE}},
}
#: What may stand nowhere in a published file, at any depth.
FORBIDDEN = {*EXECUTABLE, "quantization_config", "processor_class", "custom_generate", "cache_implementation", "init"}

NAME = "x`|<script>alert(1)</script>\n# y <!-- parity:begin --> {{ 7*7 }}"


@dataclass(frozen=True)
class Package:
    folder: Path
    inputs: PackageInputs

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def package(tmp_path: Path, name: str = "tiny", **config: Any) -> Package:
    """What becomes of tmp_path/source, with a model that computes nothing."""
    source, out = tmp_path / "source", tmp_path / "out"
    found = tiny_config(**config)
    spec = parse_spec(found)
    inputs = read_inputs(source, found, spec)
    shutil.rmtree(source)  # nothing of it is read again
    provenance = Provenance(name, None, None, {"model.safetensors": "a" * 64}, 40, {"q4": {}})
    write_package(out, inputs, spec, {"q4": write_skeleton(out, spec, "q4")}, provenance)
    return Package(out, inputs)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    write_companions(folder)
    return folder


def keys(value: Any) -> Iterator[str]:
    for entry in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from keys(entry)
    if isinstance(value, dict):
        yield from value


def test_nothing_that_runs_code_is_published(source: Path, tmp_path: Path) -> None:
    edit(source / "tokenizer_config.json", **EXECUTABLE, processor_class="Lfm2Processor", tokenizer_class="x.Y")
    edit(source / "generation_config.json", **EXECUTABLE, custom_generate="a/b", cache_implementation="static")
    edit(source / "special_tokens_map.json", **EXECUTABLE)
    found = package(tmp_path, **EXECUTABLE)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert not FORBIDDEN & set(keys(found.json(name))), name
    assert "someone/" not in "".join(path.read_text() for path in found.folder.glob("*.json"))
    assert found.json("tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"
    dropped = found.json("build.json")["dropped"]
    assert {"config.json: auto_map", "tokenizer_config.json: auto_map", "generation_config.json: custom_generate"} <= {
        *dropped
    }
    assert "tokenizer_config.json: tokenizer_class" in dropped and "config.json: something_new" in dropped
    assert check_manifest(found.folder) == []


def test_transformers_reads_what_became_of_it(source: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    edit(source / "tokenizer_config.json", **EXECUTABLE, extra_special_tokens=["<|im_start|>"])
    edit(source / "generation_config.json", **EXECUTABLE, temperature=1, top_k=20)
    folder = package(tmp_path, **EXECUTABLE).folder
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    assert (config.model_type, config.hidden_size, config.eos_token_id) == ("lfm2", 64, 7)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    assert tokenizer("Paris")["input_ids"][0] == 1 and tokenizer.eos_token == "<|im_end|>"
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "What?"}], tokenize=False)
    assert rendered == "<|startoftext|><|im_start|>user\nWhat?<|im_end|>\n"
    generation = GenerationConfig.from_pretrained(folder)
    assert (generation.do_sample, generation.temperature, generation.top_k) == (True, 1.0, 20)


def test_the_layout_of_config_keys_is_as_transformers_js_reads_it(source: Path, tmp_path: Path) -> None:
    config = package(tmp_path).json("config.json")
    assert config["transformers.js_config"] == {
        "dtype": "q4",
        "device_config": {"cpu": {"dtype": "q4"}, "wasm": {"dtype": "q4"}, "webgpu": {"dtype": "q4"}},
        "use_external_data_format": {"model_q4.onnx": 1},
    }
    assert config["layer_types"] == ["conv", "full_attention", "conv", "full_attention"]
    assert config["dtype"] == "bfloat16" and "torch_dtype" not in config


def test_truncation_and_padding_of_training_go(source: Path, tmp_path: Path) -> None:
    before = json.loads((source / "tokenizer.json").read_text())
    truncation = {"direction": "Right", "max_length": 64, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    padding |= {"pad_type_id": 0, "pad_token": "<|pad|>"}
    edit(source / "tokenizer.json", truncation=truncation, padding=padding)
    edit(source / "tokenizer_config.json", max_length=64, stride=0, truncation_strategy="longest_first")
    found = package(tmp_path)
    assert found.json("tokenizer.json") == {**before, "truncation": None, "padding": None}
    assert read_manifest(found.folder)["dropped"] == [  # type: ignore[index]
        "tokenizer.json: padding",
        "tokenizer.json: truncation",
        "tokenizer_config.json: max_length",
        "tokenizer_config.json: stride",
        "tokenizer_config.json: truncation_strategy",
    ]

    from transformers import AutoTokenizer

    assert len(AutoTokenizer.from_pretrained(found.folder)("river " * 200)["input_ids"]) > 200


def test_a_sound_tokenizer_keeps_its_bytes(source: Path, tmp_path: Path) -> None:
    (source / "special_tokens_map.json").write_text('{"eos_token":"<|im_end|>"}')
    (source / "vocab.json").write_text('{"a":1}')
    (source / "merges.txt").write_bytes(b"\xef\xbb\xbf#version: 0.2\na b\n")
    tokenizer = (source / "tokenizer.json").read_bytes()
    (source / "tokenizer.json").write_bytes(b"\xef\xbb\xbf" + tokenizer)
    found = package(tmp_path)
    assert (found.folder / "tokenizer.json").read_bytes() == tokenizer
    assert (found.folder / "special_tokens_map.json").read_bytes() == b'{"eos_token":"<|im_end|>"}'
    assert (found.folder / "merges.txt").read_bytes() == b"#version: 0.2\na b\n"
    assert "dropped" not in found.json("build.json")


def test_a_licence_keeps_its_bytes_in_any_encoding(source: Path, tmp_path: Path) -> None:
    (source / "LICENSE").unlink()
    (source / "LICENSE.txt").write_bytes(b"\xa9 M\xfcller\r\n")
    found = package(tmp_path)
    assert (found.folder / "LICENSE").read_bytes() == b"\xa9 M\xfcller\r\n"
    assert found.inputs.has_license and not (found.folder / "LICENSE.txt").exists()


def test_templates_are_published_without_their_mark(source: Path, tmp_path: Path) -> None:
    (source / "chat_template.jinja").write_bytes(b"\xef\xbb\xbf" + CHAT_TEMPLATE.encode())
    found = package(tmp_path)
    assert (found.folder / "chat_template.jinja").read_bytes() == CHAT_TEMPLATE.encode()
    assert found.json("tokenizer_config.json")["chat_template"] == CHAT_TEMPLATE


def test_the_length_of_the_tokenizer_is_the_default_and_said(source: Path, tmp_path: Path) -> None:
    edit(source / "tokenizer_config.json", model_max_length=1000)
    found = package(tmp_path)
    search = found.json("genai_config.json")
    assert (search["search"]["max_length"], search["model"]["context_length"]) == (1000, 2048)
    card = (found.folder / "README.md").read_text()
    assert "1,000 tokens (`model_max_length`)" in card and "max_length=1000, do_sample=False" in card


def test_no_length_is_none(source: Path, tmp_path: Path) -> None:
    edit(source / "tokenizer_config.json", model_max_length=10**30)
    found = package(tmp_path)
    assert found.json("genai_config.json")["search"]["max_length"] == 2048
    assert "model_max_length" not in (found.folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("sampling", "samples", "sentence"),
    [
        ({"do_sample": True, "min_p": 0.15, "top_p": None}, True, "`min_p` 0.15, which onnxruntime-genai and"),
        ({"do_sample": True, "min_p": 0, "top_p": 0.9}, True, "for `top_p` 0.9, which Transformers.js does not know:"),
        ({"do_sample": True, "min_p": None, "top_p": 1.0}, True, None),
        ({"do_sample": None, "min_p": 0.15}, False, None),
        ({"do_sample": False, "min_p": 0.15}, False, None),
    ],
)
def test_sampling_is_read_as_transformers_does(
    source: Path, tmp_path: Path, sampling: dict[str, Any], samples: bool, sentence: str | None
) -> None:
    edit(source / "generation_config.json", **sampling)
    found = package(tmp_path)
    assert found.json("genai_config.json")["search"]["do_sample"] is samples
    card = (found.folder / "README.md").read_text()
    assert sentence in card if sentence is not None else "not know" not in card


def test_a_hostile_folder_name_gives_a_sound_card(source: Path, tmp_path: Path) -> None:
    (source / "README.md").write_text("---\nlicense: mit\ntags: ['a: b', '<script>', no]\n---\n# x\n")
    found = package(tmp_path, name=NAME.replace("\n", " "))
    card = (found.folder / "README.md").read_text()
    _, matter, text = card.split("---\n", 2)
    parsed = yaml.safe_load(matter)
    assert parsed["license"] == "mit" and parsed["tags"][-2:] == ["a: b", "no"]
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    assert "<script" not in html and "<h1>y" not in html and len(re.findall("<h1>", html)) == 1
    model = NAME.replace("\n", " ") + "-ONNX"
    for snippet in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        constants = [node.value for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Constant)]
        assert model in constants
    assert card.count(PARITY_BEGIN) == 1 and "| a |" in fill_parity(card, "| a |")
    assert found.json("build.json")["dropped"] == ["README.md: tags"]


@pytest.mark.skipif(shutil.which("node") is None, reason="no node")
def test_javascript_of_a_hostile_name_parses(source: Path, tmp_path: Path) -> None:
    card = (package(tmp_path, name=NAME).folder / "README.md").read_text()
    snippets = re.findall(r"```js\n(.*?)```", card, re.DOTALL)
    assert snippets
    for snippet in snippets:
        (tmp_path / "snippet.mjs").write_text(snippet)
        done = subprocess.run(["node", "--check", tmp_path / "snippet.mjs"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def card_of(folder: Path, matter: str) -> SourceCard:
    (folder / "README.md").write_text(f"---\n{matter}---\n# Model\n")
    return read_source_card(folder)


def test_front_matter_of_a_source(tmp_path: Path) -> None:
    assert read_source_card(tmp_path) == SourceCard()
    for text in ("# Model\n", "a\n---\nb: c\n---\n", "a\n" * 50 + "license: mit\n", ""):
        (tmp_path / "README.md").write_text(text)
        assert read_source_card(tmp_path) == SourceCard()
    assert card_of(tmp_path, "license: mit\ntags: [a]\nlanguage: no\nunknown: {x: y}\n") == SourceCard(
        "mit", tags=("a",), language=("no",)
    )
    assert card_of(tmp_path, "license:\n") == SourceCard()
    assert card_of(tmp_path, "license: [mit, apache-2.0]\n").license == ("mit", "apache-2.0")
    (tmp_path / "README.md").write_bytes(b"\xef\xbb\xbf---\r\nlicense: mit\r\n---\r\n# Model\r\n")
    assert read_source_card(tmp_path).license == "mit"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("---\nlicense: cc-by-nc-4.0\n\n# hi\n", "does not end"),
        ("---\nlicense: cc-by-nc-4.0\n...\n# hi\n", "does not end"),
        (" ---\nlicense: cc-by-nc-4.0\n ---\n# hi\n", "does not end"),
        ("---\nLicense: cc-by-nc-4.0\n---\n", "has the key 'License', expected 'license'"),
        ("---\nlicence-name: mine\n---\n", "has the key 'licence-name', expected 'license_name'"),
        ("# hi\nlicense: cc-by-nc-4.0\n---\n", "is missing, and a line of the text states a license"),
        ("# hi\r\r License : mine\r", "is missing, and a line of the text states a license"),
        ("---", "does not end"),
    ],
)
def test_a_licence_that_cannot_be_read_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "README.md").write_bytes(text.encode())
    with pytest.raises(SourceError, match=message) as caught:
        read_source_card(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "---\rlicense: cc-by-nc-4.0\r---\r# hi\r",
        "<!-- c -->\n---\nlicense: cc-by-nc-4.0\n---\n# hi\n",
        "\n \n\ufeff--- \nlicense: cc-by-nc-4.0\n--- \n# hi\n",
    ],
)
def test_front_matter_behind_other_line_ends_and_comments_is_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_bytes(text.encode())
    assert read_source_card(tmp_path).license == "cc-by-nc-4.0"


def test_a_card_of_another_spelling_is_read(tmp_path: Path) -> None:
    (tmp_path / "readme.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    assert read_source_card(tmp_path).license == "cc-by-nc-4.0"


def test_what_is_odd_in_front_matter_is_left_out_and_said(tmp_path: Path) -> None:
    found = card_of(
        tmp_path,
        "base_model: /home/someone/models/LFM2\ntags: [good, '<b>', [a], 'x y']\nlicense_link: javascript:alert(1)\n"
        f"language: {'x' * 200}\n",
    )
    assert found == SourceCard(tags=("good", "x y"))
    assert found.dropped == tuple(f"README.md: {name}" for name in ("base_model", "language", "license_link", "tags"))
    for bad in ("license: {a: b}", "license: [mit, [x]]", "license_name: [a]", 'license_name: "a\\nb"'):
        with pytest.raises(SourceError, match="states the license"):
            card_of(tmp_path, bad + "\n")


def test_front_matter_of_an_artifact_reads_back() -> None:
    card = SourceCard("other", "no", "LICENSE.md", ("no", "en"), ("yes", "1.0", "a: b", "@x"), ("a/b", "c/d"))
    matter = front_matter(card, True, None)
    assert yaml.safe_load(dump(matter)) == matter
    assert (matter["license_name"], matter["license_link"]) == ("no", "LICENSE")
    assert matter["base_model"] == ["a/b", "c/d"] and matter["language"] == ["no", "en"]
    assert "license_link" not in front_matter(card, False, None), "there is no such file"
    assert front_matter(SourceCard(license_link="https://x.example/l"), True, "a/b")["license_link"].startswith("https")


def test_of_very_many_names_there_is_a_number() -> None:
    said = named([f"key{number:03}" for number in range(100)], "config.json")
    assert len(said) == MAX_NAMED + 1 and said[0] == "config.json: key000" and said[-1] == "config.json: 80 more"
    assert named(["x\n" + "y" * 100], "a.json") == ("a.json: x " + "y" * 58,)
