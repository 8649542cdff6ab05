"""Mutations: each takes the bytes of a file and a source of random numbers, and gives other bytes and what it did.

A mutation is named by its mutator and a seed, so that any input of a campaign can be made again from a few words.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.faults.content import Content
from benchmarks.faults.mutators import byte_level, headers, json_values, place_of_file, protobuf, texts
from benchmarks.faults.mutators.kinds import Mutator

#: Family -> its mutators by name. What a file is decides which families change it.
FAMILIES: dict[str, dict[str, Mutator]] = {
    "bytes": byte_level.MUTATORS,
    "json": json_values.MUTATORS,
    "template": texts.TEMPLATE,
    "yaml": texts.YAML,
    "answer": texts.ANSWER,
    "safetensors": headers.MUTATORS,
    "onnx": protobuf.MUTATORS,
    "place": place_of_file.MUTATORS,
    "own": place_of_file.OWN,
    "nothing": {"nothing": lambda data, dice: (Content(data), "nothing")},
}


@dataclass(frozen=True)
class Mutation:
    """One mutator with its seed."""

    family: str
    name: str
    seed: int

    def __str__(self) -> str:
        return f"{self.family}.{self.name}:{self.seed}"


def draw(families: Sequence[str], place: str, dice: random.Random) -> tuple[Mutation, ...]:
    """One to four mutations of `families`, fewer more often; seldom the last one, of the family
    `place`, puts something else in the file's place."""
    count = dice.choices((1, 2, 3, 4), (60, 20, 12, 8))[0]
    found: list[Mutation] = []
    for _ in range(count):
        family = place if dice.random() < 0.04 else dice.choice(families)
        name = dice.choice(sorted(FAMILIES[family]))
        found.append(Mutation(family, name, dice.getrandbits(32)))
        if family == place:
            break
    return tuple(found)


def apply(content: Content, mutations: Sequence[Mutation]) -> tuple[Content, list[str]]:
    """`content` after `mutations`, and what each did."""
    said = []
    for mutation in mutations:
        if content.kind != "file":
            break
        content, words = FAMILIES[mutation.family][mutation.name](content.data, random.Random(mutation.seed))
        said.append(f"{mutation.family}.{mutation.name}: {words}")
    return content, said
