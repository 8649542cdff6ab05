"""Chat templates: the one reader, and the check that they work at all.

transformers looks for them in the order chat_template.jinja with additional_chat_templates/NAME.jinja, then
tokenizer_config.json; older processors wrote chat_template.json. Here a template of blanks counts as none, so that an
empty file does not hide the good template that is embedded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lfm2export.errors import TokenizerError
from lfm2export.text.sandbox import SandboxError, render
from lfm2export.untrusted.json_reader import kind, read_object
from lfm2export.untrusted.paths import checked_label, find_file, shown
from lfm2export.untrusted.text import read_text

TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
MORE_TEMPLATES = "additional_chat_templates"
LEGACY_TEMPLATE = "chat_template.json"

DEFAULT = "default"
TOOL_USE = "tool_use"

#: Templates of one checkpoint; those of the hub have at most a handful.
MAX_TEMPLATES = 16

#: Bytes of all of them: tokenizer_config.json, which holds them too, is read up to 16 MiB, and JSON takes up to 6 bytes
#: for one.
MAX_TEMPLATE_BYTES = 2 << 20

#: A tool that templates are tried with, in the form that most of them want.
PROBE_TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look a word up.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
    },
}


#: A document for templates that answer from some.
PROBE_DOCUMENT: Mapping[str, str] = {
    "title": "France",
    "text": "Its capital is Paris.",
    "content": "Its capital is Paris.",
}


def read_chat_templates(folder: Path) -> dict[str, str]:
    """The chat templates of `folder` by name, the usual one under "default"; empty for a base model.

    Raises:
        TokenizerError: a file cannot be read, a template is no text, or its name could not be that of a file.
    """
    templates = _files(folder)
    for name in (TOKENIZER_CONFIG, LEGACY_TEMPLATE):
        if DEFAULT not in templates:
            path = find_file(folder, name, TokenizerError)
            settings = read_object(path, TokenizerError, folder=folder) if path is not None else {}
            templates = _named(settings.get("chat_template"), folder / name) | templates
    if len(templates) > MAX_TEMPLATES:
        raise TokenizerError(
            f"{folder} has {len(templates):,} chat templates, expected at most {MAX_TEMPLATES}; remove the others"
        )
    _check_distinct(templates, folder)
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in templates.values())
    if size > MAX_TEMPLATE_BYTES:
        raise TokenizerError(
            f"{folder} has chat templates of {size:,} bytes in all ({TEMPLATE}, {MORE_TEMPLATES}/, "
            f"{TOKENIZER_CONFIG}), expected at most {MAX_TEMPLATE_BYTES:,}; restore them from the source"
        )
    return templates


def template_for(templates: Mapping[str, str], tools: object) -> tuple[str, str] | None:
    """(name, text) of the template that transformers takes for a conversation; None where there is none."""
    name = TOOL_USE if tools is not None and TOOL_USE in templates else DEFAULT
    return (name, templates[name]) if name in templates else None


def check_templates(templates: Mapping[str, str], special_tokens: Mapping[str, str], folder: Path) -> list[str]:
    """A short conversation rendered with every template; in the list, with those that this package would use.

    `special_tokens`: those that templates see by name, as `read_special_tokens` gives them. A template may refuse
    a tool list with raise_exception; a plain question the default may not.

    Raises:
        TokenizerError: a template fails, takes too much, refuses a question, or there are some and none is the default.
    """
    if templates and DEFAULT not in templates:
        raise TokenizerError(
            f"{folder} has the chat templates {', '.join(sorted(templates))} and none is named {DEFAULT}, "
            "which is the one that runtimes use; rename one"
        )
    rendered = []
    for tools in (None, [PROBE_TOOL]):
        found = template_for(templates, tools)
        if found is not None and (tools is None or found[0] == TOOL_USE or "tools" in found[1]):
            rendered.append(_probe(found[1], found[0], special_tokens, tools, folder))
    for name, template in templates.items():
        if name not in (DEFAULT, TOOL_USE):
            _probe_other(template, name, special_tokens, folder)
    return rendered


def end_of_turn(
    templates: Mapping[str, str], special_tokens: Mapping[str, str], added: Mapping[str, int]
) -> int | None:
    """The id of the special token that the default template writes after an answer; None where it writes none.

    added: the added tokens by text, as in tokenizer.json.

    Raises:
        SandboxError: the template fails; one that refuses is taken to write none.
    """
    if DEFAULT not in templates:
        return None
    answer = "Yes"
    conversation = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": answer}]
    try:
        text = render(templates[DEFAULT], _variables(conversation, special_tokens, None, prompt=False))
    except SandboxError as error:
        if error.refused:
            return None
        raise
    if answer not in text:
        return None
    rest = text[text.rindex(answer) + len(answer) :].lstrip()
    following = [token for token in added if token and rest.startswith(token)]
    return added[max(following, key=len)] if following else None


def _probe(
    template: str, name: str, special_tokens: Mapping[str, str], tools: list[Mapping[str, Any]] | None, folder: Path
) -> str:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    try:
        return render(template, _variables(question, special_tokens, tools, prompt=True))
    except SandboxError as error:
        if error.refused and tools is not None:
            return ""
        with_tools = " with a tool" if tools is not None else ""
        raise TokenizerError(
            f"{folder}: the chat template {name!r} fails on a plain question{with_tools}: {error}; restore it from the "
            "source, or mend it"
        ) from error


def _probe_other(template: str, name: str, special_tokens: Mapping[str, str], folder: Path) -> None:
    """Try a template that nothing here uses: it may be for answers from documents, with or without tools."""
    for tools, documents in (([PROBE_TOOL], [PROBE_DOCUMENT]), (None, None)):
        question = [{"role": "user", "content": "What is the capital of France?"}]
        try:
            render(template, {**_variables(question, special_tokens, tools, prompt=True), "documents": documents})
            return
        except SandboxError as error:
            if error.refused:
                return
            failure = error
    raise TokenizerError(
        f"{folder}: the chat template {name!r} fails on a plain question, with a tool and a document and without: "
        f"{failure}; restore it from the source, mend it, or remove it"
    ) from failure


def _variables(
    messages: list[dict[str, str]],
    special_tokens: Mapping[str, str],
    tools: list[Mapping[str, Any]] | None,
    *,
    prompt: bool,
) -> dict[str, Any]:
    return {
        "messages": messages,
        "tools": tools,
        "documents": None,
        "add_generation_prompt": prompt,
        **special_tokens,
    }


def _files(folder: Path) -> dict[str, str]:
    """Templates that are files of their own."""
    found: dict[str, str] = {}
    path = find_file(folder, TEMPLATE, TokenizerError)
    if path is not None:
        found[DEFAULT] = read_text(path, TokenizerError, folder=folder)
    for name in _more(folder / MORE_TEMPLATES):
        label = checked_label(name.removesuffix(".jinja"), f"a chat template of {folder}", TokenizerError)
        found[label] = read_text(folder / MORE_TEMPLATES / name, TokenizerError, folder=folder)
    return {label: text for label, text in found.items() if text.strip()}


def _more(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if path.name.endswith(".jinja")) if folder.is_dir() else []
    except OSError as error:
        raise TokenizerError(f"{folder} cannot be read: {error.strerror}; check that it may be read") from error


def _named(value: Any, path: Path) -> dict[str, str]:
    """The chat_template of a JSON file: a text, texts by name, or a list of name and template."""
    if value is None:
        return {}
    entries: list[tuple[Any, Any]]
    if isinstance(value, str):
        entries = [(DEFAULT, value)]
    elif isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        entries = [(entry.get("name"), entry.get("template")) for entry in value]
    else:
        raise TokenizerError(
            f"{path}: chat_template is a {kind(value)}, expected a text or a list of name and template; "
            "restore it from the source"
        )
    found: dict[str, str] = {}
    for name, template in entries:
        label = checked_label(name, f"a chat template of {path}", TokenizerError)
        if label in found:
            raise TokenizerError(f"{path} has two chat templates named {label!r}; remove one")
        if not isinstance(template, str):
            raise TokenizerError(
                f"{path}: the chat template {label!r} is {shown(template)}, expected a text; restore it from the source"
            )
        found[label] = template
    return {label: text for label, text in found.items() if text.strip()}


def _check_distinct(templates: Mapping[str, str], folder: Path) -> None:
    """No two names that a file system without upper and lower case takes for one."""
    seen: dict[str, str] = {}
    for name in templates:
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise TokenizerError(
                f"{folder} has the chat templates {other!r} and {name!r}, which are one file on many disks; rename one"
            )
