"""The one reader of chat templates, and the check that a template works."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lfm2export.errors import TokenizerError
from lfm2export.text.templates import PROBE_TOOL, check_templates, end_of_turn, read_chat_templates, template_for
from tiny import CHAT_TEMPLATE

SPECIAL = {"bos_token": "<|startoftext|>", "eos_token": "<|im_end|>"}
ADDED = {"<|startoftext|>": 1, "<|im": 3, "<|im_start|>": 6, "<|im_end|>": 7}


def config(folder: Path, template: Any, name: str = "tokenizer_config.json") -> None:
    (folder / name).write_text(json.dumps({"chat_template": template}), encoding="utf-8")


def more(folder: Path, name: str, text: str) -> None:
    (folder / "additional_chat_templates").mkdir(exist_ok=True)
    (folder / "additional_chat_templates" / f"{name}.jinja").write_text(text, encoding="utf-8")


def test_where_templates_come_from(tmp_path: Path) -> None:
    assert read_chat_templates(tmp_path) == {}
    config(tmp_path, "legacy", "chat_template.json")
    assert read_chat_templates(tmp_path) == {"default": "legacy"}
    config(tmp_path, [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}])
    assert read_chat_templates(tmp_path) == {"default": "one", "tool_use": "two"}
    config(tmp_path, {"default": "three", "rag": "four"})
    assert read_chat_templates(tmp_path) == {"default": "three", "rag": "four"}
    (tmp_path / "chat_template.jinja").write_text("five")
    assert read_chat_templates(tmp_path) == {"default": "five"}, "the file goes before the embedded ones, all of them"
    more(tmp_path, "tool_use", "six")
    assert read_chat_templates(tmp_path) == {"default": "five", "tool_use": "six"}


@pytest.mark.parametrize("blank", ["", " \n\t\n", "\ufeff"])
def test_a_blank_file_hides_no_good_template(tmp_path: Path, blank: str) -> None:
    (tmp_path / "chat_template.jinja").write_text(blank, encoding="utf-8")
    assert read_chat_templates(tmp_path) == {}
    config(tmp_path, "good")
    assert read_chat_templates(tmp_path) == {"default": "good"}
    more(tmp_path, "tool_use", "tools")
    assert read_chat_templates(tmp_path) == {"default": "good", "tool_use": "tools"}


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xef\xbb\xbfhello\r\n")
    assert read_chat_templates(tmp_path) == {"default": "hello\r\n"}


@pytest.mark.parametrize("name", ["/tmp/escaped", "../escaped", "a/b", "", "a.b", "con", "x" * 65, "a\nb", 5, None])
def test_a_name_that_is_no_name_of_a_file_is_refused(tmp_path: Path, name: Any) -> None:
    config(tmp_path, [{"name": "default", "template": "x"}, {"name": name, "template": "x"}])
    with pytest.raises(TokenizerError, match=r"a chat template of .* is named .*expected at most 64 letters") as caught:
        read_chat_templates(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_same_for_a_file_of_its_own(tmp_path: Path) -> None:
    more(tmp_path, "a b", "x")
    with pytest.raises(TokenizerError, match="is named 'a b'"):
        read_chat_templates(tmp_path)


def linked(folder: Path) -> None:
    (folder / "secret.txt").write_text("secret")
    inside = folder / "in"
    inside.mkdir()
    (inside / "chat_template.jinja").symlink_to(folder / "secret.txt")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda f: config(f, 5), "chat_template is a number, expected a text or a list"),
        (lambda f: config(f, ["x"]), "chat_template is a list"),
        (lambda f: config(f, [{"name": "default", "template": 5}]), "'default' is 5, expected a text"),
        (lambda f: config(f, {"default": ["x"]}), "expected a text"),
        (lambda f: config(f, [{"name": "a", "template": "x"}] * 2), "two chat templates named 'a'"),
        (lambda f: config(f, {"Default": "x", "default": "y"}), "one file on many disks"),
        (lambda f: config(f, {f"t{i}": "x" for i in range(100)}), "has 100 chat templates, expected at most 16"),
        (lambda f: (f / "tokenizer_config.json").write_text("[1]"), "holds a JSON list, expected an object"),
        (lambda f: (f / "tokenizer_config.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "chat_template.jinja").write_bytes(b"\xff\xfeh\0"), "not UTF-8"),
        (lambda f: (f / "chat_template.jinja").write_text("x" * (5 << 20)), "more than"),
        (lambda f: (f / "chat_template.jinja").mkdir(), "is a folder, expected a file"),
    ],
)
def test_what_is_no_template_gets_one_line(tmp_path: Path, write: Callable[[Path], Any], message: str) -> None:
    write(tmp_path)
    with pytest.raises(TokenizerError, match=message) as caught:
        read_chat_templates(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    linked(tmp_path)
    with pytest.raises(TokenizerError, match=r"is a link to .*secret\.txt'?, outside"):
        read_chat_templates(tmp_path / "in")


def test_tools_take_the_template_for_them() -> None:
    both = {"default": "a", "tool_use": "b"}
    assert template_for(both, None) == ("default", "a")
    assert template_for(both, [PROBE_TOOL]) == ("tool_use", "b")
    assert template_for({"default": "a"}, [PROBE_TOOL]) == ("default", "a")
    assert template_for({"tool_use": "b"}, None) is None


def test_a_template_for_tools_is_tried_whatever_it_says(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="the chat template 'tool_use' fails on a plain question with a tool"):
        check_templates({"default": CHAT_TEMPLATE, "tool_use": "{% if x -% }"}, SPECIAL, tmp_path)


def test_a_good_template_renders_a_question(tmp_path: Path) -> None:
    (rendered,) = check_templates({"default": CHAT_TEMPLATE}, SPECIAL, tmp_path)
    assert (
        rendered == "<|startoftext|><|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert check_templates({}, SPECIAL, tmp_path) == []
    with_tools = "{{ messages[0].content }}{% if tools %}{{ raise_exception('no tools') }}{% endif %}"
    assert len(check_templates({"default": with_tools}, SPECIAL, tmp_path)) == 2, "a tool list may be refused"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 1/0 }}", "ZeroDivisionError: division by zero"),
        ("{% for i in range(1000000000) %}x{% endfor %}", "Range too big"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "more than 1 s"),
        ("{{ 'x' * 10**10 }}", "more than 512 MB of memory"),
        ("{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "longer than 4,194,304 characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself too deeply"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "calls itself too deeply"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{% break %}", "SyntaxError"),
        ("{{ raise_exception('not\nyou') }}", "not you"),
        ("{{ nothing.at.all }}", "UndefinedError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "Error"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% set ns = namespace(__class__=1) %}", "SecurityError"),
        ("{{ messages[0].content }}{% if tools %}{{ 1/0 }}{% endif %}", "with a tool: ZeroDivisionError"),
    ],
)
def test_a_template_that_fails_is_refused_in_one_line(tmp_path: Path, template: str, reason: str) -> None:
    with pytest.raises(TokenizerError, match=r"the chat template 'default' fails on a plain question") as caught:
        check_templates({"default": template}, SPECIAL, tmp_path)
    message = str(caught.value)
    assert reason in message and "\n" not in message and len(message) < 600


def test_templates_without_a_default_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="the chat templates rag, tool_use and none is named default"):
        check_templates({"tool_use": "x", "rag": "y"}, SPECIAL, tmp_path)


def test_the_end_of_a_turn_is_what_follows_an_answer() -> None:
    assert end_of_turn({"default": CHAT_TEMPLATE}, SPECIAL, ADDED) == 7
    by_name = CHAT_TEMPLATE.replace('"<|im_end|>', 'eos_token + "')
    assert "im_end" not in by_name
    assert end_of_turn({"default": by_name}, SPECIAL, ADDED) == 7
    assert end_of_turn({"default": "{{ messages[-1].content }} \n<|im_start|>"}, SPECIAL, ADDED) == 6, "the longest"
    for none in ("{{ messages[0].content }}", "{{ messages[-1].content }} end", "{{ raise_exception('no') }}"):
        assert end_of_turn({"default": none}, SPECIAL, ADDED) is None
    assert end_of_turn({}, SPECIAL, ADDED) is None
