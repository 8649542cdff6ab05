"""The model card: front matter, snippets that run, a parity table that comes later."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from lfm2export.errors import ArtifactError
from lfm2export.package import read_inputs, write_package
from lfm2export.package.card import CardFacts, fill_parity, render_card, without_parity
from lfm2export.package.front_matter import SourceCard
from lfm2export.package.model_files import Provenance
from lfm2export.spec import parse_spec
from skeleton import File, Model, Overflow
from standin import write_standin
from tiny import tiny_config, write_companions

SHA = "a" * 64
Q4 = Model([File("model_q4.onnx", 500_000, SHA), File("model_q4.onnx_data", 94_720, SHA)])
FP16 = Model([File("model_fp16.onnx", 1, SHA), File("model_fp16.onnx_data", 2, SHA)], [Overflow("norm.weight", 3, 1e5)])
SEED_LOOP = """  logits, *present_cache_values = session.run(None, dict(
      input_ids=input_ids,
      attention_mask=attention_mask,
      position_ids=position_ids,
      **past_cache_values,
  ))
"""


def card(
    *,
    models: Mapping[str, Model] | None = None,
    source: SourceCard | None = None,
    generation: Mapping[str, Any] | None = None,
    length: int | None = None,
    repo_id: str | None = "LiquidAI/LFM2-350M",
    chat: bool = True,
    license_file: bool = True,
    name: str = "LFM2-350M",
    formats: Mapping[str, Any] | None = None,
    activations: str | None = None,
    int8_caches: tuple[str, ...] = (),
    more: Mapping[str, Any] | None = None,
    **config: Any,
) -> str:
    facts = CardFacts(
        chat,
        chat,
        license_file,
        source or SourceCard(),
        {"lfm2export": "0.1.0", "torch": "2.13.0"},
        generation or {},
        length,
    )
    body = {"bits": 4, "block_size": 32, "symmetric": False}
    recipe = {
        "fp32": {"body": None},
        **({"q8": {"activations": activations}} if activations is not None else {}),
        "q4": {"body": body, "table": {"bits": 8, "symmetric": True}, "lookup": "portable"} | (more or {}),
    }
    options = {"logits": "last"}
    files = {"model.safetensors": SHA}
    provenance = Provenance(name, repo_id, "f00d" * 10, files, 40, recipe, options, formats, int8_caches)
    return render_card(parse_spec(tiny_config(**config)), models or {"q4": Q4}, provenance, facts)


def front(text: str) -> dict[str, Any]:
    _, matter, _ = text.split("---\n", 2)
    return dict(yaml.safe_load(matter))


def test_the_card_says_which_file_a_device_takes_by_itself() -> None:
    q8 = Model([File("model_quantized.onnx", 1, SHA)])
    assert "Without a `dtype` it takes `q4`." in card()
    both = card(models={"q8": q8, "q4": Q4}, activations="8 bits, one scale a token")
    assert "it takes `q8` on processors" in both and '`q4` with `device: "webgpu"`' in both
    assert "products of `q8` run on the processor: take `q4` there" in both and "round to 8 bits" in both
    alone = card(models={"q8": q8}, activations="8 bits, one scale a token")
    assert "products of `q8` run on the processor; `q4` and" in alone
    in_blocks = card(models={"q8": q8, "q4": Q4}, activations="float32")
    assert "run on the processor" not in in_blocks and "8-bit weights in blocks, float32 activations" in in_blocks


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_front_matter_is_the_sources_with_what_this_is() -> None:
    found = front(card(source=SourceCard("other", "lfm1.0", "LICENSE", ("en",), ("edge",))))
    assert found["license"] == "other" and found["license_name"] == "lfm1.0" and found["license_link"] == "LICENSE"
    assert found["base_model"] == "LiquidAI/LFM2-350M" and found["pipeline_tag"] == "text-generation"
    assert found["library_name"] == "transformers.js" and found["language"] == ["en"]
    assert found["tags"][0] == "transformers.js" and "edge" in found["tags"]


def test_no_licence_is_invented() -> None:
    text = card(license_file=False, repo_id=None)
    assert front(text)["license"] == "other" and "license_link" not in front(text) and "base_model" not in front(text)
    assert "states no licence" in text
    assert front(card(source=SourceCard("mit")))["license"] == "mit"
    assert "license_name" not in front(card(source=SourceCard("mit")))
    assert "states `mit`" in card(source=SourceCard("mit"), license_file=False)
    based = SourceCard(base_model=("LiquidAI/LFM2-1.2B",))
    assert front(card(repo_id=None, source=based))["base_model"] == "LiquidAI/LFM2-1.2B"


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("name", ["LFM2-350M", 'odd "name" with a \\ and ü'])
def test_python_snippets_compile(chat: bool, name: str) -> None:
    snippets = blocks(card(chat=chat, name=name, models={"q4": Q4, "fp16": FP16}), "python")
    assert len(snippets) == 2
    for number, snippet in enumerate(snippets):
        constants = [node.value for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Constant)]
        assert f"{name}-ONNX" in constants, f"snippet {number}"
    assert SEED_LOOP in snippets[0]


def test_the_loop_is_that_of_the_card_that_people_know() -> None:
    """Every line of the generation loop; caches are float16 only where a file has them so."""
    plain, half = (blocks(card(models=models), "python")[0] for models in ({"q4": Q4}, {"q4": Q4, "fp16": FP16}))
    assert "cache_dtype = np.float32\n" in plain
    assert 'np.float16 if filename in ("model_fp16.onnx",) else np.float32' in half
    assert "config.hidden_size // config.num_attention_heads" in plain
    assert "head_dim = config.head_dim" in blocks(card(head_dim=32), "python")[0]
    assert '# Options: "model_fp16.onnx", "model_q4.onnx"' in half


def test_int8_caches_are_told_to_whoever_writes_a_loop() -> None:
    text = card(models={"q4": Q4, "fp16": FP16}, int8_caches=("q4",))
    loop = blocks(text, "python")[0]
    assert 'kv_dtype = np.int8 if filename in ("model_q4.onnx",) else cache_dtype\n' in loop
    assert "0, head_dim], dtype=kv_dtype)" in loop and "conv_L_cache], dtype=cache_dtype)" in loop
    ast.parse(loop)
    assert "Keys and values of `q4` are int8" in text and "ONNX Runtime 1.27 or newer" in text
    assert "webgpu" not in "".join(blocks(text, "js")) and "webgpu" in "".join(blocks(card(), "js"))
    assert "kv_dtype" not in card() and "int8" not in card()


def test_javascript_snippets() -> None:
    basic, tools = blocks(card(), "js")
    assert '"LFM2-350M-ONNX",\n  { dtype: "q4" },' in basic and "apply_chat_template(messages, {\n  tools," in tools
    (completion,) = blocks(card(chat=False), "js")
    assert "messages" not in completion
    assert '{ dtype: "fp16" }' in blocks(card(models={"fp16": FP16}), "js")[0]


def test_files_sizes_and_overflows() -> None:
    text = card(models={"q4": Q4, "fp16": FP16})
    assert "| `q4` | `onnx/model_q4.onnx` | 0.6 MB | 4.00 |" in text
    assert text.index("`onnx/model_fp16.onnx`") < text.index("`onnx/model_q4.onnx`")
    assert "- `fp16`: 3 in `norm.weight`, up to 100000" in text
    assert "float16 cannot hold" not in card()


def test_formats_chosen_for_a_target() -> None:
    row = {"name": "model.embed_tokens.weight", "parameters": 786_432, "bits": 8, "block_size": 128}
    row |= {"symmetric": True, "bytes": 798_720, "kld": 5.3e-5, "kld_4_bit": 7.3e-3}
    target = {"value": 5.5, "unit": "bits per weight"}
    chosen = {"target": target, "text": "shipped", "tokens": 4096, "predicted_kld": 0.0054, "matrices": [row]}
    text = card(formats=chosen)
    assert "chosen for 5.5 bits per weight" in text and "predicted KLD 0.0054" in text
    assert "| `model.embed_tokens.weight` | 786,432 | 7.3e-03 | 8 bits, blocks of 128 | 798,720 | 5.3e-05 |" in text
    assert "Bits where they pay" not in card()


def test_provenance() -> None:
    text = card()
    assert f"| `model.safetensors` | sha256 `{SHA}` |" in text and "| revision | `" in text
    assert "| q4 | body: bits 4, block size 32, not symmetric; table: bits 8, symmetric; lookup portable |" in text
    assert "| fp32 | as is |" in text and "| options | logits last |" in text
    assert "lfm2export 0.1.0, torch 2.13.0" in text


def test_what_a_fused_file_needs_and_how_long_its_list_of_kernels_is() -> None:
    text = card(more={"operators": "few", "webgpu_nodes": 208})
    needs = (
        "- `q4` needs onnxruntime 1.30 or newer, as Transformers.js has from 4.3 on; OpenVINO 2026.4 does not run it."
    )
    assert f"Size counts both.\n\n{needs} A step is 208 nodes on WebGPU.\n\n## How to run it" in text
    assert f"\n{needs}\n" in card(more={"operators": "few", "webgpu_nodes": None})
    assert "OpenVINO" not in card(more={"operators": "plain"}) + card()


def test_parity_is_filled_in_and_again() -> None:
    text = card()
    assert "Not verified yet" in text
    first = fill_parity(text, "| dtype | KLD |\n|---|---|\n| q4 | 0.01 |")
    assert "| q4 | 0.01 |" in first and "Not verified" not in first
    second = fill_parity(first, "nothing")
    assert without_parity(text) == without_parity(first) == without_parity(second) != second
    for broken in ("no markers", text + text, text.replace("parity:begin", "parity:start")):
        with pytest.raises(ArtifactError, match="once each"):
            fill_parity(broken, "table")


def test_the_python_snippet_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it stands in the card, in a packaged folder, but for the number of tokens."""
    source, out = tmp_path / "source", tmp_path / "tiny-ONNX"
    source.mkdir()
    write_companions(source)
    write_standin(out, vocabulary=512)
    config = json.loads((out / "config.json").read_text()) | {"bos_token_id": 1, "pad_token_id": 0}
    model = Model([File("model.onnx", (out / "onnx" / "model.onnx").stat().st_size, SHA)])
    spec = parse_spec(config)
    provenance = Provenance("tiny", None, None, {}, 40, {})
    write_package(out, read_inputs(source, config, spec), spec, {"fp32": model}, provenance)
    snippet, _ = blocks((out / "README.md").read_text(), "python")
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    exec(compile(snippet.replace("max_new_tokens = 1024", "max_new_tokens = 4"), "README.md", "exec"), space)
    assert space["generated_tokens"].shape == (1, 4) or space["generated_tokens"][0, -1] == 7
    assert capsys.readouterr().out
