"""Text to tokens and back without transformers: the tokenizer file, the chat template, and decoding as tokens arrive.

Rendering equals transformers' `apply_chat_template` (tested); importing it would cost seconds at every start. It runs
in a process of its own, with limits on time and memory: a chat template is a program of a stranger's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lfm2export.errors import PromptError, TokenizerError
from lfm2export.text.sandbox import SandboxError, render, start_rendering
from lfm2export.text.templates import read_chat_templates, template_for
from lfm2export.text.tokenizer_file import (
    TOKENIZER,
    load_tokenizer,
    raise_unless_panic,
    read_special_tokens,
    read_tokenizer_file,
    read_tokenizer_settings,
)

Message = Mapping[str, Any]

#: One reasoning text, under each name that templates read it by.
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTokenizer:
    """The tokenizer and chat template of a folder.

    Raises:
        TokenizerError: tokenizer.json is missing, or a file of the tokenizer is damaged or does not work.
    """

    def __init__(self, folder: Path | str) -> None:
        folder = Path(folder)
        file = read_tokenizer_file(folder)
        settings = read_tokenizer_settings(folder)
        self._named = read_special_tokens(folder, settings).named
        self._templates = read_chat_templates(folder)
        if self._templates:
            start_rendering()
        self._tokenizer = load_tokenizer(file)

    @property
    def has_chat_template(self) -> bool:
        return bool(self._templates)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of `text`; `special` adds what the tokenizer puts around a plain text (`<|startoftext|>`)."""
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
        except BaseException as error:
            raise_unless_panic(error)
            raise PromptError(f"the tokenizer cannot encode this text ({error}); change it") from error
        return ids

    def decode(self, tokens: Sequence[int], *, skip_special: bool = False) -> str:
        try:
            text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=skip_special)
        except BaseException as error:
            raise_unless_panic(error)
            raise TokenizerError(f"the tokenizer cannot decode {len(tokens)} tokens ({error}); restore it") from error
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
        found = template_for(self._templates, tools)
        if found is None:
            names = ", ".join(sorted(self._templates))
            raise PromptError(f"none of the chat templates ({names}) is named default; rename one, or use plain text")
        name, template = found
        variables = {
            "messages": [_message(message) for message in messages],
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **self._named,
            **variables,
        }
        try:
            return render(template, variables)
        except SandboxError as error:
            if error.refused:
                raise PromptError(f"the chat template refuses this conversation: {error}") from error
            raise PromptError(
                f"the chat template {name!r} fails on this conversation: {error}; restore it from the source, or use "
                "plain text"
            ) from error

    def encode_chat(
        self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """Token ids of the rendered conversation, ready for the answer."""
        return self.encode(self.render(messages, tools=tools), special=False)


def has_tokenizer(folder: Path) -> bool:
    """Whether `folder` has a tokenizer that this package reads."""
    return (folder / TOKENIZER).exists()


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


def _message(message: Message) -> dict[str, Any]:
    kept = {key: value for key, value in message.items() if value is not None}
    reasoning = next((kept[key] for key in _REASONING if key in kept), None)
    return kept if reasoning is None else {"thinking": reasoning, **kept, "reasoning_content": reasoning}
