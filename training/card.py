"""Everything around the weights: held-out text, provenance, model card.

`train.py` writes the held-out text and `provenance.json`. Run as a command after it, this module asks the trained model
the questions of the LFM2 model card and writes README.md from what `provenance.json` says and what the model answered.
LICENSE and NOTICE are kept in the shipped folder and copied beside any other checkpoint.
"""

from __future__ import annotations

import argparse
import json
import lzma
import platform
import shutil
import textwrap
from importlib.metadata import version
from pathlib import Path
from typing import Any

SHIPPED = Path(__file__).parent.parent / "lfm2export" / "shipped"
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "lxml")

CAPITAL_MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
]
WEATHER_MESSAGES = [{"role": "user", "content": "What's the weather like in New York?"}]

README = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
language: [en]
tags: [lfm2]
---

# A small LFM2

A language model of {parameters:,} parameters with the architecture of Liquid AI's LFM2, trained from nothing by this
project on the manuals of Python, SQLite and PostgreSQL and on short conversations that the project wrote. It exists so
that an export can be tried and tested without a network: text comes out, and the loss in quality that a quantization
costs can be measured. It is no assistant: it has the style of a manual, the form of an answer and of a tool call,
and gets many facts wrong. It holds no weights of Liquid AI and is not made or endorsed by them.

| | |
|---|---|
| Parameters | {parameters:,} (bfloat16, tied embedding) |
| Layers | {layers}: attention at {attention}, short convolutions elsewhere |
| Hidden size, FFN width, heads, KV heads | {hidden}, {ffn}, {heads}, {kv_heads} |
| Vocabulary | {vocab:,} tokens, byte-level BPE, LFM2's special tokens at LFM2's ids |
| Tokens seen in training | {tokens_seen:,} (the manuals are {manual_tokens:,} tokens) |
{stages}
| Held-out perplexity per token | {heldout_perplexity:.2f} |
| The same of a unigram model | {unigram_perplexity:.0f} |

What it answers to the two examples of the LFM2 model card, decoded greedily:

{answers}

## Files

`heldout.txt.xz` is text that was never trained on: whole documents of the manuals and {chats_kept} conversations, each
with its special tokens; encode it with `add_special_tokens=False`. `provenance.json` holds the facts of this page for
machines. The suggested generation settings are LFM2's: temperature 0.3, min_p 0.15, repetition_penalty 1.05.

## Where the text comes from

| Debian package | Version | Licence | SHA-256 of the package |
|---|---|---|---|
{sources}

The copyright holders and the licences are in `NOTICE`. Everything else (the conversations, the facts in them, the chat
template) was written for this project. The conversations about the manuals quote their entries.

## How it was made

```
pip install -r training/requirements.txt
python training/corpus.py
{commands}
python training/card.py
```

With {tools}. One thread and one seed: the same machine gives the same weights; another CPU may round differently.

The weights are under the Apache License 2.0 (`LICENSE`).
"""


def write_heldout(documents: list[str], chats: list[str], out: Path) -> None:
    """The text that was never trained on, with the special tokens the model expects around every document."""
    text = "".join(f"{document}\n" for document in documents) + "".join(chats)
    with lzma.open(out / "heldout.txt.xz", "wb", preset=9) as file:
        file.write(text.encode())


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def read_heldout(out: Path) -> list[str]:
    """The held-out documents and conversations, each with its special tokens."""
    with lzma.open(out / "heldout.txt.xz", "rt", encoding="utf-8") as file:
        return [f"<|startoftext|>{text}" for text in file.read().split("<|startoftext|>")[1:]]


def write_provenance(
    out: Path, sources: list[dict[str, Any]], stage: dict[str, Any], figures: dict[str, Any], resumed: bool
) -> None:
    """Write `provenance.json`: what went in, how in each stage, with what, and what was measured at the end."""
    path = out / "provenance.json"
    earlier = json.loads(path.read_text(encoding="utf-8"))["stages"] if resumed else []
    stages = [*earlier, stage]
    facts = {"licence": "Apache-2.0", "sources": sources, "stages": stages, "figures": figures, "tools": versions()}
    path.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def greedy_answers(out: Path) -> list[tuple[str, str]]:
    """(question, answer) for the model card's examples, with special tokens shown as they are generated."""
    import torch
    from transformers import AutoTokenizer, Lfm2ForCausalLM

    import chat

    tokenizer = AutoTokenizer.from_pretrained(out)
    model = Lfm2ForCausalLM.from_pretrained(out, dtype=torch.float32)
    answers = []
    for messages, tools in ((CAPITAL_MESSAGES, None), (WEATHER_MESSAGES, [chat.WEATHER[0]])):
        inputs = tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        generated = model.generate(**inputs, do_sample=False, repetition_penalty=1.0, max_new_tokens=64)
        text = tokenizer.decode(generated[0, inputs["input_ids"].shape[1] :])
        answers.append((messages[-1]["content"], text))
    return answers


def stage_row(number: int, stage: dict[str, Any]) -> str:
    options = stage["options"]
    return (
        f"| Stage {number} | {options['stop_after']:,} steps of {options['batch']} x {options['width']} tokens, "
        f"{options['chat_share']:.0%} of the rows conversations ({options['mix']}), AdamW "
        f"{options['learning_rate']:g} with a cosine over {options['steps']:,} steps, seed {options['seed']}; "
        f"{stage['minutes']:.0f} minutes on {stage['threads']} CPU thread(s) |"
    )


def stage_command(number: int, stage: dict[str, Any]) -> str:
    """The command that repeats a stage, with every option that decides its result."""
    words = ["python training/train.py"] + (["--resume"] if number > 1 else [])
    for name, value in stage["options"].items():
        written = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        words.append(f"--{name.replace('_', '-')} {written}")
    return " \\\n  ".join(textwrap.wrap(" ".join(words), 110, break_on_hyphens=False))


def readme(facts: dict[str, Any], answers: list[tuple[str, str]], chats_kept: int) -> str:
    stages, figures = facts["stages"], facts["figures"]
    options = stages[-1]["options"]
    numbered = list(enumerate(stages, start=1))
    rows = (f"| {s['package']} | {s['version']} | {s['licence']} | `{s['sha256']}` |" for s in facts["sources"])
    return README.format(
        **{name: options[name] for name in ("layers", "hidden", "ffn", "heads", "kv_heads", "vocab")},
        **{name: figures[name] for name in ("parameters", "heldout_perplexity", "unigram_perplexity")},
        attention=", ".join(map(str, options["attention"])),
        tokens_seen=sum(stage["tokens_seen"] for stage in stages),
        manual_tokens=figures["corpus_tokens"]["manuals"],
        stages="\n".join(stage_row(number, stage) for number, stage in numbered),
        commands="\n".join(stage_command(number, stage) for number, stage in numbered),
        answers="\n".join(f"> {question}\n>\n> `{answer}`\n" for question, answer in answers).rstrip(),
        sources="\n".join(rows),
        tools=", ".join(f"{name} {number}" for name, number in facts["tools"].items()),
        chats_kept=chats_kept,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=SHIPPED, help="the folder that train.py wrote")
    out = parser.parse_args().out
    for name in ("LICENSE", "NOTICE"):
        if out.resolve() != SHIPPED.resolve():
            shutil.copyfile(SHIPPED / name, out / name)
    facts = json.loads((out / "provenance.json").read_text(encoding="utf-8"))
    chats_kept = sum(text.startswith("<|startoftext|><|im_start|>") for text in read_heldout(out))
    answers = greedy_answers(out)
    (out / "README.md").write_text(readme(facts, answers, chats_kept), encoding="utf-8")
    for question, answer in answers:
        print(f"{question}\n  {answer}")


if __name__ == "__main__":
    main()
