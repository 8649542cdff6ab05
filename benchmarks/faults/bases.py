"""Sound folders that inputs are made from: a tiny checkpoint, whole and in shards, and an artifact with its reports."""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
from pathlib import Path

from benchmarks.faults.mutators.kinds import OUTSIDE
from benchmarks.peers.locate import ROOT

#: What no reader may find: a text that appears in no other file.
SECRET = "f8e1c2-a-private-text-of-somebody\n"

#: A chat template beside the usual one, taken for conversations with tools.
FURTHER_TEMPLATE = "additional_chat_templates/tool_use.jinja"

CARD = """---
license: other
license_name: lfm1.0
license_link: LICENSE
language:
- en
- de
tags:
- liquid
- lfm2
base_model: LiquidAI/LFM2-350M
pipeline_tag: text-generation
---

# A model

Some words about it.
"""

TOOLS = [
    {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
            "required": ["city"],
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]

ANSWER = (
    'Let me look.<|tool_call_start|>[get_weather(city="Oslo", days=2), now()]<|tool_call_end|>'
    "<|tool_call_start|>[note(text='a', more={'b': [1, 2.5, None, True]})]<|tool_call_end|> Done."
)


def make_bases(folder: Path) -> Path:
    """checkpoint, sharded, other (of other weights), artifact, loose files, and a folder that nobody may look into.

    Made in a process of its own, because what makes them leaves threads behind that a fork would miss.
    """
    if not (folder / "complete").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "benchmarks.faults.bases", str(folder)], cwd=ROOT, check=True)
    return folder


def _make(folder: Path) -> None:
    from lfm2export.pipeline import build
    from lfm2export.report import write_report
    from lfm2export.verify.run import verify_artifact
    from tests.tiny import write_tiny

    for name, shard_bytes in (("checkpoint", None), ("sharded", 100_000)):
        write_tiny(folder / name, shard_bytes=shard_bytes)
        _companions(folder / name)
    _more_tokenizer_files(folder / "sharded")
    write_tiny(folder / "other", dtype="F16")
    _companions(folder / "other")
    report = build(str(folder / "checkpoint"), dtypes=["q4"], out=folder / "artifact", threads=1)
    found = verify_artifact(report.folder, reference=folder / "checkpoint", quick=True)
    write_report(report.folder, found)
    _consumers(folder / "artifact")
    loose = folder / "loose"
    loose.mkdir()
    (loose / "tools.json").write_text(json.dumps(TOOLS, indent=1), encoding="utf-8")
    (loose / "prompts.txt").write_text("What is this?\n\nAnd that?\nÜber 水\n", encoding="utf-8")
    (loose / "answer.txt").write_text(ANSWER, encoding="utf-8")
    text = "The river runs down from the hills to the sea.\n" * 60
    (loose / "text.txt").write_text(text, encoding="utf-8")
    (loose / "text.txt.xz").write_bytes(lzma.compress(text.encode()))
    (folder / OUTSIDE).mkdir()
    (folder / OUTSIDE / "secret.txt").write_text(SECRET, encoding="utf-8")
    (folder / "complete").touch()


def _companions(folder: Path) -> None:
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    (folder / "NOTICE").write_text("Made for tests.\n", encoding="utf-8")
    tokens = {"bos_token": "<|startoftext|>", "eos_token": {"content": "<|im_end|>", "lstrip": False}}
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens, indent=1), encoding="utf-8")


def _more_tokenizer_files(folder: Path) -> None:
    """What older tools keep beside tokenizer.json, and a second template."""
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_start|>": 6, "<|im_end|>": 7}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e\n", encoding="utf-8")
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    (folder / FURTHER_TEMPLATE).parent.mkdir()
    (folder / FURTHER_TEMPLATE).write_text(template + "{{ tools }}", encoding="utf-8")


def _consumers(folder: Path) -> None:
    """A consumers.json as `check-consumers` leaves it."""
    from lfm2export.consumers import FILE
    from lfm2export.consumers.result import Check, ConsumerReport, ConsumerResult, Verdict

    checks = (Check("greedy: chat", Verdict.PASSED, "16 tokens"), Check("greedy: text", Verdict.FAILED, "differs"))
    result = ConsumerResult("card loop", "q4", "cpu", Verdict.FAILED, "1.32.0", None, checks, 0.01, 1.5)
    skipped = ConsumerResult.not_run("transformers.js/node", "q4", "cpu", "not installed")
    report = ConsumerReport(folder.name, (result, skipped)).to_dict()
    (folder / FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _make(Path(sys.argv[1]))
