"""What every consumer is asked: the model card's examples, a plain continuation, and a batch of uneven rows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

#: New tokens of each greedy run, where the processor or a real GPU computes.
MAX_NEW_TOKENS = 24

#: The same where a GPU is emulated on the processor: a step takes seconds.
SOFTWARE_MAX_NEW_TOKENS = 3

#: As the card's examples have it; answers usually end long before.
CARD_MAX_NEW_TOKENS = 512

PLAIN_TEXT = "The os module provides"

#: Three rows of clearly different length: the shorter ones are padded.
BATCH = (PLAIN_TEXT, "Hello", "A list of the names of all files in the current directory is returned by the function")

CARD_MESSAGES = (
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
)

TOOL_MESSAGES = ({"role": "user", "content": "What's the weather like in New York?"},)

TOOLS = (
    {
        "name": "get_weather",
        "description": "Get current weather information for a location",
        "parameters": {
            "type": "object",
            "properties": {
                "location": {"type": "string", "description": "The city and state, e.g. San Francisco, CA"},
                "unit": {
                    "type": "string",
                    "enum": ["celsius", "fahrenheit"],
                    "description": "The unit of temperature to use",
                },
            },
            "required": ["location"],
        },
    },
)

#: What a user says next, in the conversation of two turns.
SECOND_MESSAGE = "And of Germany?"


@dataclass(frozen=True)
class Prompt:
    """One greedy run. `text` or `messages`; `penalty`: with the repetition penalty of generation_config.json."""

    name: str
    text: str | None = None
    messages: tuple[dict[str, str], ...] | None = None
    tools: tuple[dict[str, Any], ...] | None = None
    penalty: bool = False
    max_new_tokens: int | None = None

    def request(self) -> dict[str, Any]:
        """As the JavaScript side reads it."""
        fields = {
            "name": self.name,
            "text": self.text,
            "messages": self.messages,
            "tools": self.tools,
            "penalty": self.penalty,
            "max_new_tokens": self.max_new_tokens,
        }
        return {name: value for name, value in fields.items() if value is not None}


PLAIN = Prompt("plain", text=PLAIN_TEXT)
CHAT = Prompt("chat", messages=CARD_MESSAGES)
TOOL_CALL = Prompt("tools", messages=TOOL_MESSAGES, tools=TOOLS)

#: What the card's ONNX Runtime loop asks.
CARD_LOOP = Prompt("card: loop", messages=({"role": "user", "content": "What is C. elegans?"},))

#: The two examples of the card under its own settings: greedy, with the repetition penalty that the folder asks for.
CARD_CHAT = Prompt("card: basic example", messages=CARD_MESSAGES, penalty=True, max_new_tokens=CARD_MAX_NEW_TOKENS)
CARD_TOOLS = Prompt(
    "card: tool calling", messages=TOOL_MESSAGES, tools=TOOLS, penalty=True, max_new_tokens=CARD_MAX_NEW_TOKENS
)


@dataclass(frozen=True)
class Example:
    """An example of the model card, to the letter, and the constants of it that hold its outcome."""

    prompt: Prompt
    file: str
    names: tuple[str, ...]

    def request(self, dtype: str, device: str | None) -> dict[str, Any]:
        """The example for `dtype`, and for `device` where it names another that this consumer does not have."""
        source = (resources.files("lfm2export.consumers") / "examples" / self.file).read_text(encoding="utf-8")
        source = replaced(source, 'dtype: "q4"', f"dtype: {json.dumps(dtype)}")
        if device is not None and 'device: "webgpu"' in source:
            source = replaced(source, 'device: "webgpu"', f"device: {json.dumps(device)}")
        return {"kind": "example", "source": source, "names": list(self.names), "place": CARD_MODEL}


#: Where the card's examples find their model; each consumer puts its own place in.
CARD_MODEL = "onnx-community/LFM2-2.6B-ONNX"

BASIC_EXAMPLE = Example(CARD_CHAT, "basic.mjs", ("output",))
TOOLS_EXAMPLE = Example(CARD_TOOLS, "tools.mjs", ("sequences", "response"))


def replaced(text: str, old: str, new: str) -> str:
    """`text` with `old` replaced; it must be there."""
    if old not in text:
        raise ValueError(f"{old!r} is not in the example")
    return text.replace(old, new)
