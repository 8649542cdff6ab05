"""The tokenizer's files: the same template for every runtime, rendered the same."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from lfm2export.errors import TokenizerError
from lfm2export.package.tokenizer import (
    portable_settings,
    portable_template,
    read_tokenizer_files,
    template_files,
    with_templates,
)
from lfm2export.text.folder import read_text_files
from lfm2export.text.templates import read_chat_templates
from tiny import CHAT_TEMPLATE, tokenizer_json, write_companions

MESSAGES = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]


def write_tokenizer(source: Path, out: Path) -> None:
    """What a package has of `source`'s tokenizer."""
    text = read_text_files(source, {"eos_token_id": 7}, None, 512)
    templates = text.templates
    found = read_tokenizer_files(source, text, 512)
    (out / "tokenizer_config.json").write_text(json.dumps(with_templates(found.settings, templates)))
    for name, text in template_files(templates).items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(text)
    for name, content in found.files.items():
        (out / name).write_bytes(content)


def rendered(template: str) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    texts, _ = render_jinja_template(
        [MESSAGES], chat_template=template, bos_token="<s>", return_assistant_tokens_mask=True
    )
    return str(texts[0])


@pytest.mark.parametrize("left", ["{%", "{%-", "{%+", "{%- "])
@pytest.mark.parametrize("right", ["%}", "-%}", " -%}", "+%}"])
def test_generation_tags_go_and_the_text_stays(left: str, right: str) -> None:
    for before, after in itertools.product(["", "\n", "  \n\n  ", " x "], ["", "\n", "\n\n  ", " y"]):
        template = (
            "{{ bos_token }}{% for m in messages %}\n{% if m.role == 'assistant' %}"
            f"{before}{left} generation {right}{after}{{{{ m.content }}}}{before}{left}endgeneration{right}{after}"
            "{% else %}{{ m.content }}{% endif %}{% endfor %}"
        )
        portable = portable_template(template)
        assert "generation" not in portable
        assert rendered(portable) == rendered(template)


def test_the_generation_prompt_is_no_generation_tag() -> None:
    assert portable_template(CHAT_TEMPLATE) == CHAT_TEMPLATE


def test_the_template_is_in_both_places(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    write_companions(source)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": "older"}))
    (source / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>"}')
    write_tokenizer(source, out)
    assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert (out / "special_tokens_map.json").exists()
    assert (out / "chat_template.jinja").read_text() == CHAT_TEMPLATE, "the file goes before the embedded one"
    assert json.loads((out / "tokenizer_config.json").read_text()) == settings | {"chat_template": CHAT_TEMPLATE}


def test_where_templates_come_from(tmp_path: Path) -> None:
    assert read_chat_templates(tmp_path) == {}
    (tmp_path / "chat_template.json").write_text('{"chat_template": "legacy"}')
    assert read_chat_templates(tmp_path) == {"default": "legacy"}
    named = [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert read_chat_templates(tmp_path) == {"default": "one", "tool_use": "two"}
    (tmp_path / "out").mkdir()
    (tmp_path / "tokenizer.json").write_text(tokenizer_json())
    write_tokenizer(tmp_path, tmp_path / "out")
    assert read_chat_templates(tmp_path / "out") == {"default": "one", "tool_use": "two"}
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["chat_template"] == named
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": 5}')
    with pytest.raises(TokenizerError, match="chat_template is a number"):
        read_chat_templates(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(TokenizerError, match="not valid JSON"):
        read_chat_templates(tmp_path)


def test_settings_of_transformers_5_are_read_by_4_too() -> None:
    settings = {
        "backend": "tokenizers",
        "extra_special_tokens": ["<|im_start|>"],
        "tokenizer_class": "TokenizersBackend",
    }
    assert portable_settings(settings)[0] == {
        "additional_special_tokens": ["<|im_start|>"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    assert portable_settings({"extra_special_tokens": {"image": "<i>"}, "tokenizer_class": "Other"}, {"<i>"}) == (
        {"extra_special_tokens": {"image": "<i>"}, "tokenizer_class": "PreTrainedTokenizerFast"},
        ("tokenizer_config.json: tokenizer_class",),
    )


def test_a_setting_that_only_sounds_like_a_token_is_not_published(tmp_path: Path) -> None:
    """`use_auth_token` and its like hold passwords; `image_token` names a token that the vocabulary has."""
    secrets = {"use_auth_token": True, "hf_token": "hf_abc", "api_token": {"content": "hf_abc"}}
    named = {"eos_token": "<|im_end|>", "turn_token": "<|im_start|>"}
    stated = {**secrets, **named, "extra_special_tokens": {"token": "hf_abc", "turn": {"content": "<|im_start|>"}}}
    write_companions(tmp_path)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = tmp_path / name
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(before | stated))
    text = read_text_files(tmp_path, {"eos_token_id": 7}, None, 512)
    found = read_tokenizer_files(tmp_path, text, 512)
    of_map = json.loads(found.files["special_tokens_map.json"])
    assert "hf_abc" not in json.dumps([of_map, found.settings])
    for settings in (of_map, found.settings):
        assert not secrets.keys() & settings.keys() and settings.items() >= named.items()
        assert settings["extra_special_tokens"] == {"turn": {"content": "<|im_start|>"}}
    for name in (*secrets, "extra_special_tokens.token"):
        for file in ("tokenizer_config.json", "special_tokens_map.json"):
            assert f"{file}: {name}" in found.dropped


@pytest.mark.parametrize(("stated", "length"), [(512.0, 512), (1e30, int(1e30)), (0, None), (-5, None), (0.5, None)])
def test_a_length_of_no_token_is_left_out(stated: float, length: int | None) -> None:
    settings, dropped = portable_settings({"model_max_length": stated, "tokenizer_class": "LlamaTokenizer"})
    assert settings.get("model_max_length") == length and not isinstance(settings.get("model_max_length"), float)
    assert dropped == (() if length is not None else ("tokenizer_config.json: model_max_length",))


def test_chance_goes_out_of_the_tokenizer(tmp_path: Path) -> None:
    """BPE's dropout, of training, would split a user's words differently each time."""
    write_companions(tmp_path)
    before = json.loads((tmp_path / "tokenizer.json").read_text())
    before["model"]["dropout"] = 0.5
    (tmp_path / "tokenizer.json").write_text(json.dumps(before))
    found = read_tokenizer_files(tmp_path, read_text_files(tmp_path, {"eos_token_id": 7}, None, 512), 512)
    after = json.loads(found.files["tokenizer.json"])
    assert after["model"].pop("dropout") is None and found.dropped == ("tokenizer.json: model.dropout",)
    del before["model"]["dropout"]
    assert {**after, "truncation": None, "padding": None} == {**before, "truncation": None, "padding": None}


def test_what_transformers_saves_comes_back_the_same(tmp_path: Path) -> None:
    """A tokenizer saved by transformers 5, packaged, and loaded again."""
    from transformers import AutoTokenizer

    source, saved, out = (tmp_path / name for name in ("source", "saved", "out"))
    source.mkdir()
    out.mkdir()
    write_companions(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.save_pretrained(saved)
    write_tokenizer(saved, out)
    again = AutoTokenizer.from_pretrained(out)
    assert again.apply_chat_template(MESSAGES, tokenize=False) == tokenizer.apply_chat_template(
        MESSAGES, tokenize=False
    )
    assert again.all_special_tokens == tokenizer.all_special_tokens
    assert again("Paris is")["input_ids"] == tokenizer("Paris is")["input_ids"]
