"""The command line: each command reads its options, calls one library function, and ends with an exit code.

What the codes mean stands in `exit_codes.py`, what an exception means in `endings.py`. Imports that cost time stay
inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from lfm2export import __version__
from lfm2export.command_group import FILE, FOLDER, NAME, CommandGroup
from lfm2export.console import say
from lfm2export.contract import MODEL_FILES
from lfm2export.exit_codes import ExitCode

DTYPES = tuple(MODEL_FILES)


@click.group(NAME, cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name=NAME)
def main() -> None:
    """Export Liquid AI LFM2 checkpoints to ONNX artifacts that run in Transformers.js, ONNX Runtime and
    onnxruntime-genai.

    \b
    Example:
      lfm2-export build ./my-lfm2 --dtype q4 -o ./my-lfm2-ONNX
      lfm2-export generate ./my-lfm2-ONNX -p "What is the capital of France?"
    """


def _end(good: bool) -> None:
    """The end of a command that judges an artifact."""
    sys.exit(ExitCode.GOOD if good else ExitCode.ARTIFACT_FAILED)


@main.command()
@click.argument("source", required=False)
@click.option("--dtype", "dtypes", type=click.Choice(DTYPES), multiple=True, help="Repeatable; default q4.")
@click.option("-o", "--output", type=FOLDER, help="The artifact folder to make; default ./<name>-ONNX.")
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--force", is_flag=True, help="Replace an artifact, if nothing else is in its folder.")
@click.option("--logits", type=click.Choice(["last", "all"]), default="last", show_default=True)
@click.option(
    "--profile",
    type=click.Choice(["web", "cpu"]),
    default="web",
    show_default=True,
    help="web: blocks of 32, few kernels on WebGPU. cpu: blocks of 256, faster on CPUs and coarser.",
)
@click.option("--block-size", type=click.Choice(["16", "32", "64", "128", "256"]), help="Default: the profile's.")
@click.option(
    "--symmetric/--asymmetric",
    default=None,
    help="4-bit blocks without or with a zero point; default with, but where WebGPU fuses those without.",
)
@click.option("--table-bits", type=click.Choice(["4", "8"]), default="8", show_default=True)
@click.option(
    "--target-bpw",
    type=click.FloatRange(min=0, min_open=True),
    metavar="BITS",
    help="q4 and q4f16: the format of every matrix, where bits pay, for a file of so many bits per weight.",
)
@click.option("--target-size", type=click.FloatRange(min=0, min_open=True), metavar="MB", help="The same by bytes.")
@click.option("--quantizer", type=click.Choice(["search", "round"]), default="search", show_default=True)
@click.option(
    "--lookup",
    type=click.Choice(["portable", "gather_block_quantized"]),
    default="portable",
    show_default=True,
    help="How a quantized table is read; the second does not load in a browser without WebGPU.",
)
@click.option(
    "--q8",
    type=click.Choice(["channels", "blocks"]),
    default="channels",
    show_default=True,
    help="q8: weights by channel and activations by token in 8 bits; blocks is exacter, and slow in browsers.",
)
@click.option(
    "--kv-cache",
    type=click.Choice(["native", "int8"]),
    default="native",
    show_default=True,
    help="Keys and values of q4 and q8; int8: a quarter of the memory, faster from some thousand tokens on, CPUs only.",
)
@click.option(
    "--accuracy-level",
    type=click.Choice(["0", "4"]),
    default="4",
    show_default=True,
    help="Products of blocks: 4 lets kernels round activations to 8 bits, fast; 0 does not, slow on CPUs.",
)
@click.option(
    "--operators",
    type=click.Choice(["few", "plain"]),
    help="q4 and q4f16: few kernels on WebGPU, for onnxruntime 1.30 and newer; or plain, for older ones and OpenVINO. "
    "Default: the profile's, web few, cpu plain.",
)
@click.option("--calibrate", is_flag=True, help="Fit q4 and q4f16 to what their matrices see in text; takes minutes.")
@click.option(
    "--calibration-text",
    metavar="FILE|self",
    help="Text to calibrate on, perhaps .xz, or 'self': sampled from the model; default the text that ships.",
)
@click.option("--calibration-tokens", type=click.IntRange(min=1024), help="About that many; default 16,384.")
@click.option("--threads", type=click.IntRange(min=1), help="Default: one a core.")
@click.option(
    "--cache/--no-cache",
    default=True,
    show_default=True,
    help="Keep the traced graph for the next build of this shape; the files are the same either way.",
)
@click.option(
    "--verify/--no-verify", default=True, show_default=True, help="Quick parity checks before it takes its place."
)
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def build(source: str | None, dtypes: tuple[str, ...], output: Path | None, **options: Any) -> None:
    """Turn an LFM2 checkpoint into a complete artifact folder.

    SOURCE is a folder, a hub id such as LiquidAI/LFM2-350M, or nothing: the small model that ships with this package.

    \b
    Example:
      lfm2-export build ./my-lfm2 --dtype q4 --dtype fp16 -o ./my-lfm2-ONNX
      lfm2-export build ./my-lfm2 --calibrate --calibration-tokens 2048 -o ./my-lfm2-ONNX
      lfm2-export build --target-bpw 5 -o ./small-ONNX
    """
    from lfm2export.commands import run_build

    _end(run_build(source, dtypes, output, **options))


@main.command()
@click.argument("folder", type=FOLDER)
@click.option(
    "--reference",
    metavar="SOURCE",
    help="The checkpoint: a folder or OWNER/NAME[@REVISION]; default what build.json names, if it is here.",
)
@click.option("--dtype", "dtypes", type=click.Choice(DTYPES), multiple=True, help="Repeatable; default all.")
@click.option("--prompts", type=FILE, help="Prompts, one a line; default the built-in ones.")
@click.option("--steps", type=click.IntRange(min=1), default=16, show_default=True, help="Tokens after each prompt.")
@click.option("--text", type=FILE, help="Text to score, perhaps .xz; default the shipped held-out text.")
@click.option("--long", is_flag=True, help="A prompt as long as the context, instead of 4,096 tokens.")
@click.option("--quick", is_flag=True, help="What build does at its end: no long prompt, no text.")
@click.option("--reference-mode", type=click.Choice(["auto", "memory", "stream"]), default="auto", show_default=True)
@click.option("--against", type=FOLDER, help="Another artifact, compared on the same text in pairs.")
@click.option("--junit", type=FILE, help="Write the verdicts as JUnit XML.")
@click.option("--threads", type=click.IntRange(min=1), help="Default: one for small models, else the runtime's choice.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def verify(folder: Path, **options: Any) -> None:
    """Prove an artifact against PyTorch, or fail it: exit code 1. Writes parity.json, parity.md and parity.html.

    \b
    Example:
      lfm2-export verify ./my-lfm2-ONNX --reference ./my-lfm2
    """
    from lfm2export.commands import run_verify

    _end(run_verify(folder, **options))


@main.command()
@click.argument("folder", type=FOLDER)
@click.option("--junit", type=FILE, help="Write the verdicts as JUnit XML.")
def report(folder: Path, junit: Path | None) -> None:
    """Write parity.md, parity.html and the card's table again from parity.json; exit code 1 if it says failed.

    \b
    Example:
      lfm2-export report ./my-lfm2-ONNX
    """
    from lfm2export.commands import run_report

    _end(run_report(folder, junit))


@main.command("check-consumers")
@click.argument("folder", type=FOLDER)
@click.option("--dtype", "dtypes", type=click.Choice(DTYPES), multiple=True, help="Repeatable; default all.")
@click.option("--consumer", "consumers", multiple=True, help="Repeatable; default all that are installed.")
@click.option("--json", "as_json", is_flag=True, help="The same for machines.")
def check_consumers(folder: Path, dtypes: tuple[str, ...], consumers: tuple[str, ...], as_json: bool) -> None:
    """Run an artifact in the runtimes that are installed: ONNX Runtime, Transformers.js, browsers,
    onnxruntime-genai, OpenVINO.

    \b
    Example:
      lfm2-export check-consumers ./my-lfm2-ONNX --dtype q4
    """
    from lfm2export.commands import run_consumers

    _end(run_consumers(folder, dtypes, consumers, as_json))


@main.command("chat-page")
@click.argument("folder", type=FOLDER)
@click.option("--force", is_flag=True, help="Replace a page that is already there.")
def chat_page(folder: Path, force: bool) -> None:
    """Put a static chat page beside an artifact, to be hosted with it. Needs the packages of `make consumers`.

    \b
    Example:
      lfm2-export chat-page ./my-lfm2-ONNX
    """
    from lfm2export.page_commands import run_chat_page

    run_chat_page(folder, force)


@main.command()
@click.argument("folder", type=FOLDER)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes any that is free."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on; 0.0.0.0 is every one.")
@click.option("--open", "in_browser", is_flag=True, help="Open the page in the browser of this machine.")
def serve(folder: Path, port: int, host: str, in_browser: bool) -> None:
    """Serve an artifact with its chat page, to this machine by default, with the headers that give wasm its threads.

    FOLDER is an artifact that `chat-page` was run on, or its page. A Ctrl-C ends it.

    \b
    Example:
      lfm2-export serve ./my-lfm2-ONNX
    """
    from lfm2export.page_commands import run_serve

    run_serve(folder, host, port, in_browser)


@main.command()
@click.argument("size", type=click.Choice(["350M", "700M", "1.2B", "2.6B"]))
@click.argument("folder", type=FOLDER)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--shard-size", type=click.FloatRange(min=1), metavar="MB", help="Split the weights into files of this size."
)
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def synth(size: str, folder: Path, seed: int, shard_size: float | None, quiet: bool) -> None:
    """Write a random checkpoint of a released shape, to measure size, memory and speed with.

    \b
    Example:
      lfm2-export synth 350M ./synth-350M
    """
    from lfm2export.console import progress_on_stderr
    from lfm2export.synth import write_synth

    with progress_on_stderr(quiet) as progress:
        shard_bytes = int(shard_size * 1e6) if shard_size else None
        written = write_synth(size, folder, seed=seed, shard_bytes=shard_bytes, progress=progress)
    say(f"{written}: random weights of LFM2-{size}, seed {seed}")


@main.command()
@click.argument("folder", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="The same facts for machines.")
def inspect(folder: Path, as_json: bool) -> None:
    """Show contract, operators, bytes by role, bits per weight and chunks of an artifact, and check every hash.

    \b
    Example:
      lfm2-export inspect ./my-lfm2-ONNX
    """
    from lfm2export.commands import run_inspect

    _end(run_inspect(folder, as_json))


@main.command()
@click.argument("folder", type=FOLDER)
@click.option(
    "--dtype", "dtypes", type=click.Choice(DTYPES), multiple=True, help="Repeatable; default q4 where present."
)
@click.option(
    "--context",
    "contexts",
    type=click.IntRange(min=1),
    multiple=True,
    help="Tokens of the prompt. Repeatable; default 128, 512 and 4096.",
)
@click.option(
    "--runtime",
    type=click.Choice(["python", "node", "browser"]),
    default="python",
    show_default=True,
    help="node, browser: Transformers.js, as a visitor of a page runs it; needs what `make consumers` installs.",
)
@click.option("--device", type=click.Choice(["cpu", "wasm", "webgpu"]), help="Default: cpu in Node, wasm in a browser.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Runs of every figure.")
@click.option("--threads", type=click.IntRange(min=1), help="Default: one for each core.")
@click.option("--json", "as_json", is_flag=True, help="The same for machines.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def bench(folder: Path, dtypes: tuple[str, ...], as_json: bool, quiet: bool, **options: Any) -> None:
    """Measure an artifact on this machine: load, time to first token, prefill, decode, memory, share of the bandwidth.

    Runs on any LFM2 ONNX folder of this layout, whoever made it. Nothing else should run meanwhile.

    \b
    Example:
      lfm2-export bench ./my-lfm2-ONNX --context 128 --context 512
      lfm2-export bench ./my-lfm2-ONNX --runtime browser --context 128
    """
    from lfm2export.commands import run_bench

    run_bench(folder, dtypes, as_json, quiet, **options)


@main.command()
@click.argument("folder", type=FOLDER)
@click.option("-p", "--prompt", help="One message; without it, and without --chat, the prompt is read from stdin.")
@click.option("--dtype", type=click.Choice(DTYPES), help="Default: q4 where present.")
@click.option("--chat", is_flag=True, help="A conversation: one message a line, until the end of the input.")
@click.option("--raw", is_flag=True, help="Continue the prompt as plain text, without the chat template.")
@click.option("--system", help="The system message.")
@click.option("--tools", type=FILE, help="JSON file with a list of function definitions.")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    help="Default: 256, and with the prompt no more than the tokenizer's model_max_length.",
)
@click.option("--greedy", is_flag=True, help="Always the likeliest token.")
@click.option("--sample", is_flag=True, help="Draw tokens: by the artifact's values, else temperature 0.3, min_p 0.15.")
@click.option("--temperature", type=float, help="Draw tokens; 0 is greedy. Default: the artifact's.")
@click.option("--min-p", type=float, help="Draw tokens. Default: the artifact's.")
@click.option("--top-k", type=int, help="Draw tokens; 0 is off. Default: the artifact's, else 50.")
@click.option("--repetition-penalty", type=float, help="Drawn or greedy. Default: the artifact's.")
@click.option("--seed", type=click.IntRange(min=0), help="Equal seeds give equal answers.")
@click.option(
    "--draft",
    type=click.Choice(["ngram", "off"]),
    default="ngram",
    show_default=True,
    help="Guess tokens that repeat prompt or answer, several a step: faster where the answer copies, the same answer.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Default: the runtime's choice.")
def generate(folder: Path, prompt: str | None, **options: Any) -> None:
    """Generate text with an artifact: one answer, a conversation, or a plain continuation.

    Tokens are drawn only where generation_config.json says do_sample, or an option turns it on.

    Runs on any LFM2 ONNX folder of this layout, whoever made it.

    \b
    Example:
      lfm2-export generate ./my-lfm2-ONNX -p "What is the capital of France?" --greedy
    """
    from lfm2export.commands import run_generate

    run_generate(folder, prompt, **options)
