"""The reference's answers to everything that is asked of a file, computed once per file and shared by its consumers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lfm2export.consumers.prompts import BATCH, CHAT, MAX_NEW_TOKENS, SECOND_MESSAGE, Prompt
from lfm2export.consumers.reference import Continuation, continuation
from lfm2export.generation.defaults import read_defaults
from lfm2export.runtime import OnnxModel
from lfm2export.text.tokenizer import ChatTokenizer


class Asked:
    """One model file behind the Python loop, its tokenizer, and the continuations already computed."""

    def __init__(self, folder: Path, dtype: str) -> None:
        self.folder = folder
        self.dtype = dtype
        self.model = OnnxModel(folder, dtype)
        self.tokenizer = ChatTokenizer(folder)
        self.defaults = read_defaults(folder)
        self._known: dict[tuple[tuple[int, ...], int, float], Continuation] = {}

    def continued(self, tokens: Sequence[int], limit: int = MAX_NEW_TOKENS, penalty: float = 1.0) -> Continuation:
        """The greedy continuation of `tokens`."""
        key = (tuple(tokens), limit, penalty)
        if key not in self._known:
            self._known[key] = continuation(self.model, tokens, limit, self.defaults.eos_ids, penalty)
        return self._known[key]

    def answer(self, prompt: Prompt) -> Continuation:
        """The answer to `prompt` under its own settings."""
        limit = prompt.max_new_tokens if prompt.max_new_tokens is not None else MAX_NEW_TOKENS
        penalty = self.penalty if prompt.penalty else 1.0
        return self.continued(self.prompt_tokens(prompt), limit, penalty)

    def prompt_tokens(self, prompt: Prompt) -> list[int]:
        if prompt.text is not None:
            return self.tokenizer.encode(prompt.text)
        assert prompt.messages is not None
        return self.tokenizer.encode_chat(prompt.messages, tools=prompt.tools)

    @cached_property
    def penalty(self) -> float:
        """The repetition penalty that generation_config.json states; every consumer but ours applies it when greedy."""
        return self.defaults.sampling.repetition_penalty

    @cached_property
    def batch(self) -> list[Continuation]:
        """Each row of the batch, run alone."""
        return [self.continued(self.tokenizer.encode(text)) for text in BATCH]

    def second_turn(self, prompt: Prompt, limit: int) -> tuple[list[int], Continuation]:
        """(tokens from the first answer's end to the second answer, the second answer) of a chat of two turns.

        The first answer is kept as it was generated; the rest is what the template puts around the next message.
        """
        first = self.answer(prompt)
        held = [*first.prompt, *first.tokens]
        ended = first.tokens[-1] in self.defaults.eos_ids
        glue = "\n" if ended else "<|im_end|>\n"
        rest = f"{glue}<|im_start|>user\n{SECOND_MESSAGE}<|im_end|>\n<|im_start|>assistant\n"
        added = self.tokenizer.encode(rest, special=False)
        return added, self.continued([*held, *added], limit)

    def requests(self, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        """`prompts` as workers are asked them: tokens and limit, and the second turn of the chat."""
        found: list[dict[str, Any]] = []
        for prompt in prompts:
            request: dict[str, Any] = {"tokens": self.prompt_tokens(prompt), "limit": MAX_NEW_TOKENS}
            if prompt is CHAT:
                second, _ = self.second_turn(prompt, MAX_NEW_TOKENS)
                request["turns"] = [{"tokens": second, "limit": MAX_NEW_TOKENS}]
            found.append(request)
        return found
