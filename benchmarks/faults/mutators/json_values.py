"""JSON with a sense for what it is: values of other types, numbers that do not fit, keys twice, depth, hostile names.

A document is kept as pairs, so that an object may have a key twice, and written by hand, so that it may hold what no
writer would write: NaN, numbers of thousands of digits, half a surrogate pair.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.faults.content import Content
from benchmarks.faults.mutators import byte_level
from benchmarks.faults.mutators.kinds import PATHS, STRINGS, Mutator


class Pairs(list[list[Any]]):
    """An object: [key, value] in order."""


@dataclass(frozen=True)
class Raw:
    """Text that is written as it is."""

    text: str


NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 7, 63, 64, 255, 65_536, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30,
    0.5, -0.5, 1e-46, 1e308, -1e308, Raw("1e400"), Raw("-1e999"), Raw("NaN"), Raw("Infinity"), Raw("-Infinity"),
    Raw("-0"), Raw("-0.0"), Raw("1" * 400), Raw("1" * 5000), Raw("0x10"), Raw("01"), Raw("1.0"), Raw("1E2"),
)  # fmt: skip
OTHERS: tuple[Any, ...] = (
    None, True, False, Raw('"\\ud800"'), Raw('"\\udc00\\ud800"'), Raw('"\\u0000"'), Raw('"\\x"'), Raw("'single'"),
    Raw("undefined"), Raw("// comment"), [], Pairs(), [[]], [None], [0], [-1], [True], ["a", 1], [1.5],
    Pairs([["", None]]), Pairs([["a", 1]]), Pairs([["content", None]]), Pairs([["content", "x"]]),
    Pairs([["__class__", "x"]]),
)  # fmt: skip

#: Keys that readers look for, in whatever file; their presence alone may mean something.
KEYS = (
    "architectures", "auto_map", "bos_token_id", "eos_token_id", "pad_token_id", "eos_token", "bos_token",
    "pad_token", "chat_template", "custom_pipelines", "quantization_config", "rope_scaling", "rope_parameters",
    "head_dim", "layer_types", "full_attn_idxs", "num_hidden_layers", "block_multiple_of",
    "block_ffn_dim_multiplier", "block_ff_dim", "intermediate_size", "tie_embedding", "model_type", "is_causal",
    "text_config", "transformers.js_config", "temperature", "top_k", "top_p", "min_p", "do_sample",
    "repetition_penalty", "max_length", "truncation", "padding", "added_tokens", "added_tokens_decoder",
    "extra_special_tokens", "additional_special_tokens", "model_max_length", "normalizer", "pre_tokenizer",
    "post_processor", "decoder", "tokenizer_class", "__metadata__", "weight_map", "metadata", "files", "source",
    "repo_id", "revision", "name", "formats", "schema_version", "results", "function", "type", "dtype", "shape",
    "data_offsets", "torch_dtype", "_name_or_path", "label2id", "id2label", "", "__class__", "\0",
)  # fmt: skip


def value(dice: random.Random) -> Any:
    """Any value; large ones seldom."""
    if dice.random() < 0.02:
        return dice.choice(_LARGE)()
    return dice.choice((dice.choice(NUMBERS), dice.choice(OTHERS), dice.choice(STRINGS), dice.choice(PATHS)))


_LARGE: tuple[Callable[[], Any], ...] = (
    lambda: Raw("[" * 200_000),
    lambda: Raw("[" * 900 + "]" * 900),
    lambda: Raw('{"a":' * 100_000 + "1" + "}" * 100_000),
    lambda: Raw("[" + ",".join(["[]"] * 400_000) + "]"),
    lambda: Raw("[" + ",".join(["0"] * 1_000_000) + "]"),
    lambda: Raw("{" + ",".join(f'"{i}":{i}' for i in range(200_000)) + "}"),
    lambda: "x" * 5_000_000,
    lambda: Raw("9" * 1_000_000),
)


def parse(data: bytes) -> Any:
    """The document as pairs.

    Raises:
        ValueError, RecursionError: it is no JSON any more.
    """
    return json.loads(data.decode("utf-8-sig"), object_pairs_hook=lambda pairs: Pairs([list(pair) for pair in pairs]))


def write(node: Any) -> str:
    """`node` as JSON text, or what looks like it."""
    if isinstance(node, Raw):
        return node.text
    if isinstance(node, Pairs):
        return "{" + ", ".join(f"{_string(key)}: {write(inner)}" for key, inner in node) + "}"
    if isinstance(node, list):
        return "[" + ", ".join(write(inner) for inner in node) + "]"
    return _string(node) if isinstance(node, str) else json.dumps(node)


def slot(node: Any, dice: random.Random) -> tuple[list[Any], int, str] | None:
    """(container, index, path) of one value, top-level ones as likely as deep ones; None where there is none."""
    path, found = "$", None
    while isinstance(node, list) and node:
        index = dice.randrange(len(node))
        entry = node[index]
        if isinstance(node, Pairs):
            found, node, path = (entry, 1), entry[1], f"{path}.{str(entry[0])[:40]}"
        else:
            found, node, path = (node, index), entry, f"{path}[{index}]"
        if dice.random() < 0.35:
            break
    return None if found is None else (*found, path)


def objects(node: Any) -> list[Pairs]:
    """Every object of the document, outermost first."""
    found, todo = [], [node]
    while todo:
        inner = todo.pop(0)
        if isinstance(inner, Pairs):
            found.append(inner)
            todo += [entry[1] for entry in inner if isinstance(entry[1], list)]
        elif isinstance(inner, list):
            todo += [entry for entry in inner if isinstance(entry, list)]
    return found


def _edits(edit: Callable[[Any, random.Random], tuple[Any, str] | None]) -> Mutator:
    """`edit` of a parsed document as a mutator; a file that is no document has a bit flipped."""

    def mutate(data: bytes, dice: random.Random) -> tuple[Content, str]:
        try:
            document = parse(data)
            done = edit(document, dice)
            if done is not None:
                return Content(write(done[0]).encode("utf-8", "surrogatepass")), done[1]
        except (ValueError, RecursionError):
            pass
        return byte_level.flip(data, dice)

    return mutate


def replace(document: Any, dice: random.Random) -> tuple[Any, str] | None:
    place = slot(document, dice)
    if place is None:
        return None
    container, index, path = place
    container[index] = value(dice)
    return document, f"{path} is {write(container[index])[:60]}"


def replace_number(document: Any, dice: random.Random) -> tuple[Any, str] | None:
    place = slot(document, dice)
    if place is None:
        return None
    container, index, path = place
    container[index] = dice.choice(NUMBERS)
    return document, f"{path} is {write(container[index])[:60]}"


def remove(document: Any, dice: random.Random) -> tuple[Any, str] | None:
    place = slot(document, dice)
    holder = next((pairs for pairs in objects(document) if place is not None and place[0] in pairs), None)
    if place is None:
        return None
    if holder is not None:
        holder.remove(place[0])
    else:
        del place[0][place[1]]
    return document, f"{place[2]} is gone"


def add(document: Any, dice: random.Random) -> tuple[Any, str] | None:
    holders = objects(document)
    if not holders:
        return None
    holder = holders[0] if dice.random() < 0.6 else dice.choice(holders)
    pair = [dice.choice((*KEYS, *KEYS, *STRINGS)), value(dice)]
    holder.append(pair)
    return document, f"{pair[0][:40]!r} added: {write(pair[1])[:60]}"


def twice(document: Any, dice: random.Random) -> tuple[Any, str] | None:
    holders = [holder for holder in objects(document) if holder]
    if not holders:
        return None
    holder = dice.choice(holders)
    key = dice.choice(holder)[0]
    holder.append([key, value(dice)])
    return document, f"{str(key)[:40]!r} twice"


def rename(document: Any, dice: random.Random) -> tuple[Any, str] | None:
    holders = [holder for holder in objects(document) if holder]
    if not holders:
        return None
    entry = dice.choice(dice.choice(holders))
    before, entry[0] = entry[0], dice.choice((*STRINGS, *KEYS))
    return document, f"{str(before)[:40]!r} is called {entry[0][:40]!r}"


def swap(document: Any, dice: random.Random) -> tuple[Any, str] | None:
    first, second = slot(document, dice), slot(document, dice)
    if first is None or second is None or first[2].startswith(second[2]) or second[2].startswith(first[2]):
        return None
    first[0][first[1]], second[0][second[1]] = second[0][second[1]], first[0][first[1]]
    return document, f"{first[2]} and {second[2]} have changed places"


def wrap(document: Any, dice: random.Random) -> tuple[Any, str] | None:
    place = slot(document, dice)
    if place is None:
        return None
    container, index, path = place
    depth = dice.choice((1, 1, 10, 60, 200))
    for _ in range(depth):
        container[index] = dice.choice(([container[index]], Pairs([["a", container[index]]])))
    return document, f"{path} is {depth} deeper"


def extend(document: Any, dice: random.Random) -> tuple[Any, str] | None:
    place = slot(document, dice)
    if place is None or not isinstance(place[0][place[1]], str):
        return None
    container, index, path = place
    container[index] = container[index] + dice.choice(STRINGS)
    return document, f"{path} is {container[index][-60:]!r}"


def whole(document: Any, dice: random.Random) -> tuple[Any, str] | None:
    found = dice.choice((value(dice), [document], Pairs([["a", document]]), dice.choice(NUMBERS)))
    return found, f"the whole file is {write(found)[:60]}"


def _string(text: str) -> str:
    return json.dumps(str(text), ensure_ascii=False)


MUTATORS: dict[str, Mutator] = {
    edit.__name__: _edits(edit)
    for edit in (replace, replace_number, remove, add, twice, rename, swap, wrap, extend, whole)
}
