"""Conversations that keep the cache: of each turn only what is new is prefilled."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from lfm2export.generation.loop import Generated, Model, S, Stop, generate
from lfm2export.generation.sampling import Sampler
from lfm2export.generation.tools import ToolCalls, parse_tool_calls
from lfm2export.text.tokenizer import ChatTokenizer, StreamDecoder


@dataclass(frozen=True)
class Answer(Generic[S]):
    """One turn of the assistant.

    text: the answer with its special tokens, the stop token left out, as the conversation keeps it. calls: the tool
    calls in it. prompt: the tokens before the answer, of which the cache already held the first `reused`.
    """

    text: str
    calls: ToolCalls
    generated: Generated[S]
    prompt: list[int]
    reused: int


def stream(
    model: Model[S],
    tokenizer: ChatTokenizer,
    tokens: Sequence[int],
    *,
    max_new_tokens: int,
    on_text: Callable[[str], None],
    sampler: Sampler | None = None,
    eos_ids: Collection[int] = (),
    skip_special: bool = True,
    state: S | None = None,
    length: int | None = None,
    draft: bool = False,
) -> Generated[S]:
    """:func:`generate`, with the answer handed to `on_text` piece by piece; the stop token is not shown."""
    decoder = StreamDecoder(lambda ids: tokenizer.decode(ids, skip_special=skip_special))

    def show(token: int) -> None:
        piece = "" if token in eos_ids else decoder.push(token)
        if piece:
            on_text(piece)

    generated = generate(
        model,
        tokens,
        max_new_tokens=max_new_tokens,
        sampler=sampler,
        eos_ids=eos_ids,
        on_token=show,
        state=state,
        length=length,
        draft=draft,
    )
    rest = decoder.flush()
    if rest:
        on_text(rest)
    return generated


class Conversation(Generic[S]):
    """Messages, and the model's state after them.

    When the conversation as rendered for a turn begins with what the cache holds, only the rest is fed. The answers'
    own tokens stand then, even where their text would tokenize otherwise. If it does not (a template that rewrites
    earlier turns), all of it is fed afresh.

    Args:
        tools: function objects, as the chat template takes them.
        system: the system message.
        length, draft: as for :func:`generate`.
    """

    def __init__(
        self,
        model: Model[S],
        tokenizer: ChatTokenizer,
        *,
        eos_ids: Collection[int],
        max_new_tokens: int = 512,
        sampler: Sampler | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        system: str | None = None,
        length: int | None = None,
        draft: bool = False,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.eos_ids = eos_ids
        self.max_new_tokens = max_new_tokens
        self.sampler = sampler if sampler is not None else Sampler()
        self.tools = tools
        self.length = length
        self.draft = draft
        self.messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
        self._cached: list[int] = []
        self._state: S | None = None

    def ask(
        self,
        content: str,
        *,
        role: str = "user",
        on_text: Callable[[str], None] | None = None,
        skip_special: bool = True,
    ) -> Answer[S]:
        """Add one message (`role` "tool" for a tool's result) and answer it.

        A turn that fails, or is interrupted before its first token, leaves the conversation as it was.

        Raises:
            PromptError: the template refuses the message, or the conversation no longer fits the context.
        """
        messages = [*self.messages, {"role": role, "content": content}]
        tokens, reused = self._prompt(self.tokenizer.render(messages, tools=self.tools))
        generated = stream(
            self.model,
            self.tokenizer,
            tokens,
            max_new_tokens=self.max_new_tokens,
            on_text=on_text if on_text is not None else _ignore,
            sampler=self.sampler,
            eos_ids=self.eos_ids,
            skip_special=skip_special,
            state=self._state if reused else None,
            length=self.length,
            draft=self.draft,
        )
        self._state = generated.state
        self._cached = [*tokens, *generated.tokens][: int(generated.state.lengths[0])]
        answer = generated.tokens[:-1] if generated.stop is Stop.EOS else generated.tokens
        text = self.tokenizer.decode(answer)
        if generated.tokens:
            self.messages = [*messages, {"role": "assistant", "content": text}]
        return Answer(text, parse_tool_calls(text), generated, tokens, reused)

    def _prompt(self, rendered: str) -> tuple[list[int], int]:
        """The tokens of the conversation, and how many of them the cache holds: all it has, or none."""
        tokens, held = self.tokenizer.encode(rendered, special=False), len(self._cached)
        if held < len(tokens) and tokens[:held] == self._cached:
            return tokens, held
        text = self.tokenizer.decode(self._cached)
        if held and len(text) < len(rendered) and rendered.startswith(text):
            return [*self._cached, *self.tokenizer.encode(rendered[len(text) :], special=False)], held
        return tokens, 0


def _ignore(text: str) -> None:
    """No listener."""
