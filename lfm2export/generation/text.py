"""Text to tokens and back without transformers: the tokenizer file, the chat template, and decoding as tokens arrive.

Rendering equals transformers' `apply_chat_template` (tested); importing it would cost seconds at every start.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from lfm2export.errors import PromptError, TokenizerError

Message = Mapping[str, Any]

#: Special tokens that a template sees by name.
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

#: One reasoning text, under each name that templates read it by.
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTokenizer:
    """The tokenizer and chat template of a folder.

    Raises:
        TokenizerError: tokenizer.json or tokenizer_config.json is missing or damaged.
    """

    def __init__(self, folder: Path | str) -> None:
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise TokenizerError(f"{folder} has no tokenizer.json; copy it from the checkpoint")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises plain Exception
            raise TokenizerError(f"{path} cannot be read ({error}); restore it from the checkpoint") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        config = _read_object(folder / "tokenizer_config.json")
        self._named = {name: _content(config[name]) for name in _NAMED_TOKENS if config.get(name) is not None}
        self._templates = _read_templates(folder, config)
        self._compiled: dict[str, jinja2.Template] = {}

    @property
    def has_chat_template(self) -> bool:
        return bool(self._templates)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of `text`; `special` adds what the tokenizer puts around a plain text (`<|startoftext|>`)."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
        return ids

    def decode(self, tokens: Sequence[int], *, skip_special: bool = False) -> str:
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=skip_special)
        return text

    def token(self, token: int) -> str | None:
        """The vocabulary entry of one id, None outside the vocabulary."""
        entry: str | None = self._tokenizer.id_to_token(token)
        return entry

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The conversation as the chat template writes it; `variables` are further names that the template reads.

        Raises:
            PromptError: no template, no messages, or the template itself refuses the conversation.
        """
        if not self._templates:
            raise PromptError("the folder has no chat template; give a plain prompt instead of a conversation")
        if not messages:
            raise PromptError("the conversation is empty; give at least one message")
        name = "tool_use" if tools is not None and "tool_use" in self._templates else "default"
        try:
            if name not in self._compiled:
                self._compiled[name] = _environment().from_string(self._templates[name])
            return self._compiled[name].render(
                messages=[_message(message) for message in messages],
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **(self._named | variables),
            )
        except jinja2.TemplateError as error:
            raise PromptError(f"the chat template refuses this conversation: {error}") from error

    def encode_chat(
        self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """Token ids of the rendered conversation, ready for the answer."""
        return self.encode(self.render(messages, tools=tools), special=False)


class StreamDecoder:
    """Turns tokens into text as they come; never emits half a UTF-8 character, and loses none.

    A piece is emitted once the text so far does not end in U+FFFD, which is how an unfinished character decodes. Only
    the tokens since the piece before last are decoded again, so that a step's cost does not grow with the text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._emitted = 0

    def push(self, token: int) -> str:
        """The text that `token` completes, often one piece, empty while a character is unfinished."""
        self._window.append(token)
        known = self._decode(self._window[: self._emitted])
        text = self._decode(self._window)[len(known) :]
        if not text or text.endswith("\ufffd"):
            return ""
        del self._window[: self._emitted]
        self._emitted = len(self._window)
        return text

    def flush(self) -> str:
        """What is held back, at the end: an unfinished character shows as U+FFFD."""
        known = self._decode(self._window[: self._emitted])
        text = self._decode(self._window)[len(known) :]
        self._emitted = len(self._window)
        return text


def _environment() -> ImmutableSandboxedEnvironment:
    """The sandbox of transformers 5.24: templates are untrusted code."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.globals["dict"] = _TemplateDict()
    return environment


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's part for training; here it renders its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _TemplateDict:
    """`dict` without the attributes that lead out of the sandbox."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _message(message: Message) -> dict[str, Any]:
    kept = {key: value for key, value in message.items() if value is not None}
    reasoning = next((kept[key] for key in _REASONING if key in kept), None)
    return kept if reasoning is None else {"thinking": reasoning, **kept, "reasoning_content": reasoning}


def _read_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The template file wins over the one embedded in tokenizer_config.json, as in transformers."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return {"default": path.read_text(encoding="utf-8")}
    template = config.get("chat_template")
    if isinstance(template, list):
        return {entry["name"]: entry["template"] for entry in template}
    return {} if template is None else {"default": template}


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise TokenizerError(f"{path.parent} has no {path.name}; copy it from the checkpoint")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(f"{path} is not valid JSON ({error}); restore it from the checkpoint") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} holds a JSON {type(value).__name__}, expected an object; restore it")
    return value


def _content(token: Any) -> str:
    """A special token is a string, or an object with its `content`."""
    return str(token["content"]) if isinstance(token, dict) else str(token)
