"""Changing one thing in a checkpoint, and expecting the one line that says so."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lfm2export.checkpoint import open_checkpoint
from lfm2export.errors import SourceError

TABLE = "model.embed_tokens.weight"
W1 = "model.layers.0.feed_forward.w1.weight"
W2 = "model.layers.0.feed_forward.w2.weight"
CONV = "model.layers.0.conv.conv.weight"


def read_parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_parts(path: Path, header: Any, data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def change(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Load the tensors of a file, edit them, save them with the library."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def set_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refusal(error: type[SourceError], folder: Path, *parts: str) -> str:
    """Open and expect an error of exactly this class, in one line, with these parts."""
    with pytest.raises(SourceError) as caught:
        open_checkpoint(folder)
    message = str(caught.value)
    assert type(caught.value) is error, message
    assert "\n" not in message
    assert [part for part in parts if part not in message] == [], message
    return message
