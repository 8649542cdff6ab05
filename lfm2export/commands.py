"""What the commands do between reading options and the library: choose values, call it, show the result."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lfm2export.artifact import check_folder
from lfm2export.console import progress_on_stderr, say, say_text, show_table
from lfm2export.errors import Lfm2ExportError, PromptError
from lfm2export.untrusted.escape import on_terminal, one_line
from lfm2export.untrusted.paths import anywhere
from lfm2export.untrusted.text import MAX_TEXT_BYTES, decode, read_text

if TYPE_CHECKING:
    from lfm2export.contract import Tensor
    from lfm2export.generation.loop import Generated
    from lfm2export.generation.sampling import Sampler
    from lfm2export.inspection import Inspection
    from lfm2export.pipeline import BuildReport, Check
    from lfm2export.progress import Progress
    from lfm2export.recipes import Calibration, ProfileName, Target
    from lfm2export.verify.results import Verification


def run_build(
    source: str | None,
    dtypes: Sequence[str],
    output: Path | None,
    *,
    revision: str | None,
    force: bool,
    threads: int | None,
    cache: bool,
    quiet: bool,
    profile: ProfileName,
    block_size: str | None,
    table_bits: str,
    accuracy_level: str,
    target_bpw: float | None,
    target_size: float | None,
    verify: bool,
    calibrate: bool,
    calibration_text: str | None,
    calibration_tokens: int | None,
    **options: Any,
) -> bool:
    """Build, verify before the artifact takes its place, and say in a few lines what was made; whether it is good."""
    from lfm2export.pipeline import build
    from lfm2export.recipes import profiled

    chosen = profiled(
        profile,
        block_size=int(block_size) if block_size is not None else None,
        table_bits=int(table_bits),
        accuracy_level=int(accuracy_level),
        calibration=_calibration(calibrate, calibration_text, calibration_tokens, bool(target_bpw or target_size)),
        target=_target(target_bpw, target_size, calibration_text),
        **options,
    )
    verified: list[Verification] = []
    if source is None:
        say("No SOURCE given: exporting the small model that ships with this package.")
    with progress_on_stderr(quiet) as progress:
        report = build(
            source,
            revision=revision,
            dtypes=dtypes or ("q4",),
            options=chosen,
            out=output,
            force=force,
            threads=threads,
            cache=cache,
            check=_quick_check(verified, progress) if verify else None,
            progress=progress,
        )
    _show_built(report)
    for found in verified:
        _show_verified(found)
    _show_place(report)
    return report.passed is not False


def _quick_check(verified: list[Verification], progress: Progress) -> Check:
    """The check of a build: the quick verification, its report written beside the new files, its result to `verified`.

    The report calls the folder what it will be called.
    """

    def check(folder: Path, built: BuildReport) -> bool:
        from lfm2export.report import write_report
        from lfm2export.verify.run import verify_artifact

        found = verify_artifact(
            folder,
            reference=built.source,
            dtypes=tuple(built.models),
            quick=True,
            just_built=True,
            name=built.folder.resolve().name,
            progress=progress,
        )
        write_report(folder, found)
        verified.append(found)
        return found.passed

    return check


def _show_built(report: BuildReport) -> None:
    for dtype, model in report.models.items():
        size = sum(file.bytes for file in model.files)
        bits = 8 * size / report.spec.num_parameters
        say(f"{dtype:<6} {size / 1e6:10.1f} MB  {bits:5.2f} bits per weight  {model.files[0].name}")
        for overflow in model.overflows:
            say(
                f"{dtype}: {overflow.count} values of {overflow.tensor} do not fit float16 and were limited to 65504 "
                f"(largest {overflow.largest:g}); prefer fp32 or q4 for this checkpoint",
                err=True,
            )
    if report.selection is not None:
        say(report.selection.summary())
    if report.calibrated is not None:
        say(report.calibrated.summary())


def _show_place(report: BuildReport) -> None:
    """Where the artifact is, what of the replaced one was not as it had been built, and what to read."""
    if report.edited:
        say(f"replaced although edited since it was built: {', '.join(report.edited)}", err=True)
    if report.left is not None:
        say(f"what was replaced could not be removed: change the permissions of {report.left} and remove it", err=True)
    if report.passed is False:
        say(
            f"parity failed: the new artifact is kept as {report.folder}, and its place is as it was; see "
            f"{report.folder / 'parity.html'}"
        )
        return
    say(f"{report.folder} is complete ({report.seconds:.1f} s)")
    if report.passed:
        say(f"parity passed: see {report.folder / 'parity.html'}")


def _calibration(calibrate: bool, text: str | None, tokens: int | None, targeted: bool) -> Calibration | None:
    from lfm2export.recipes import Calibration

    given = {name: value for name, value in (("text", text), ("tokens", tokens)) if value is not None}
    if not calibrate and (tokens is not None or (text is not None and not targeted)):
        raise PromptError(f"--calibration-{next(iter(given))} says how to calibrate; add --calibrate, or leave it out")
    return Calibration(**given) if calibrate else None  # type: ignore[arg-type]


def _target(bits: float | None, megabytes: float | None, text: str | None) -> Target | None:
    from lfm2export.recipes import Target

    if bits is not None and megabytes is not None:
        raise Lfm2ExportError("--target-bpw and --target-size were both given; give the one that matters")
    if bits is not None:
        return Target(bits, "bits per weight", text)
    return Target(megabytes, "MB", text) if megabytes is not None else None


def run_verify(
    folder: Path,
    *,
    quiet: bool,
    prompts: Path | None = None,
    junit: Path | None = None,
    dtypes: Sequence[str] = (),
    **options: Any,
) -> bool:
    """Verify, write the report, and say the verdict of every file; whether all passed."""
    from lfm2export.locking import locked
    from lfm2export.report import write_report
    from lfm2export.report.facts import reference_line
    from lfm2export.verify.run import verify_artifact

    texts = _lines(prompts) if prompts is not None else None
    with progress_on_stderr(quiet) as progress, locked(folder):
        found = verify_artifact(folder, dtypes=tuple(dtypes) or None, prompts=texts, progress=progress, **options)
        write_report(folder, found, junit_file=junit)
    say(reference_line(found))
    _show_verified(found)
    say(f"parity {found.verdict.value}: see {folder / 'parity.html'}")
    return found.passed


def _show_verified(found: Verification) -> None:
    for file in found.files:
        say(f"{file.dtype:<6} {file.verdict.value}  {file.file}  ({file.seconds:.1f} s)")
        for failure in file.failures[:5]:
            say(f"       {failure.message}", err=True)


def run_report(folder: Path, junit: Path | None) -> bool:
    """Write the report of what was measured again; whether all passed."""
    from lfm2export.locking import locked
    from lfm2export.report import render_again

    check_folder(folder)
    with locked(folder):
        verification, _ = render_again(folder, junit_file=junit)
    say(f"{folder}: {verification.verdict.value}")
    return verification.passed


def run_consumers(folder: Path, dtypes: Sequence[str], consumers: Sequence[str], as_json: bool) -> bool:
    """Run the installed consumers, put their verdicts into the parity report if there is one; whether all is good."""
    from lfm2export.consumers import run_check_consumers
    from lfm2export.locking import locked
    from lfm2export.report import render_again
    from lfm2export.verify.document import FILE as PARITY

    with progress_on_stderr() as progress, locked(folder):
        good = run_check_consumers(
            folder, dtypes=dtypes, consumers=consumers, as_json=as_json, show=say_text, progress=progress
        )
        if (folder / PARITY).is_file():
            render_again(folder)
    return good


def _lines(path: Path) -> list[str]:
    text = read_text(path, PromptError, folder=anywhere(path), remedy="give a UTF-8 text, one prompt a line")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise PromptError(f"{path} holds no prompt; give one a line")
    return lines


def run_inspect(folder: Path, as_json: bool) -> bool:
    """Show an artifact; whether it is good."""
    from lfm2export.inspection import inspect_artifact

    check_folder(folder)
    with progress_on_stderr() as progress:
        found = inspect_artifact(folder, progress=progress)
    if as_json:
        say_text(json.dumps(found.to_dict(), indent=2))
    else:
        _show(found)
    return found.good


def _show(found: Inspection) -> None:
    from rich.table import Table

    for model in found.models:
        table = Table(
            title=f"{model.file}  ({model.dtype}, logits {model.logits})", title_justify="left", show_header=False
        )

        def add(name: str, *lines: str, table: Table = table) -> None:
            table.add_row(name, "\n".join(map(one_line, lines)))

        opsets = ", ".join(f"{name or 'ai.onnx'} {version}" for name, version in model.opsets.items())
        add("opset, IR", f"{opsets}; IR {model.ir_version}")
        add("nodes", f"{model.nodes}, of which {model.nodes - model.nodes_without_weight_casts} cast an initializer")
        add("operators", ", ".join(f"{name} {count}" for name, count in model.op_counts.items()))
        if model.accuracy_levels:
            said = {0: "0, of activations as they are", 4: "4, of activations rounded to 8 bits where that is fast"}
            add("products", *(f"accuracy level {said.get(level, level)}" for level in model.accuracy_levels))
        add("bytes", f"{model.bytes:,} = {model.bits_per_weight:.2f} bits per weight")
        add("by role", ", ".join(f"{name} {count:,}" for name, count in model.bytes_by_role.items()))
        add("by type", ", ".join(f"{name} {count:,}" for name, count in model.bytes_by_dtype.items()))
        add("chunks", ", ".join(f"{chunk.name} {chunk.bytes or 0:,}" for chunk in model.chunks) or "none")
        add("inputs", *_tensors(model.inputs))
        add("outputs", *_tensors(model.outputs))
        add("contract", "kept" if not model.problems else "; ".join(model.problems))
        show_table(table, 110)
    if found.hashes is None:
        say("hashes: none to check, the folder has no build.json")
    elif found.hashes:
        for problem in found.hashes:
            say(f"hashes: {problem}", err=True)
    else:
        say("hashes: every file is as it was built")


def _tensors(tensors: Sequence[Tensor]) -> list[str]:
    """The first ones in full; caches of further layers only differ in their number."""
    shown = [f"{tensor.name} {tensor.dtype}[{', '.join(map(str, tensor.shape))}]" for tensor in tensors[:6]]
    return [*shown, f"... {len(tensors) - 6} more"] if len(tensors) > 6 else shown


def run_bench(folder: Path, dtypes: Sequence[str], as_json: bool, quiet: bool, **options: Any) -> None:
    """Measure an artifact and show what was found."""
    from lfm2export.bench.run import bench_artifact
    from lfm2export.bench.table import tables

    with progress_on_stderr(quiet) as progress:
        found = bench_artifact(folder, dtypes, progress=progress, **options)
    if as_json:
        say_text(json.dumps(found.to_dict(), indent=2))
        return
    for table in tables(found):
        show_table(table, 170)


#: Tokens of an answer, unless told.
MAX_NEW_TOKENS = 256


def run_generate(
    folder: Path,
    prompt: str | None,
    *,
    dtype: str | None,
    chat: bool,
    raw: bool,
    system: str | None,
    tools: Path | None,
    max_new_tokens: int | None,
    seed: int | None,
    threads: int | None,
    draft: str,
    **sampling: Any,
) -> None:
    """Open the artifact and answer: one prompt, every line of a conversation, or a plain continuation."""
    from lfm2export.artifact import find_model
    from lfm2export.generation.chat import Conversation, stream
    from lfm2export.generation.defaults import chosen_sampling, described, read_defaults
    from lfm2export.generation.sampling import Sampler
    from lfm2export.generation.settings import unused_values
    from lfm2export.generation.tools import read_tools
    from lfm2export.runtime import BufferedModel, OnnxModel
    from lfm2export.text.tokenizer import ChatTokenizer

    prompt, system = _argument(prompt, "--prompt"), _argument(system, "--system")
    find_model(folder, dtype)  # before anything else of the folder is read: it says what an artifact is
    functions = read_tools(tools) if tools is not None else None
    if raw and (chat or system or functions):
        raise PromptError("--raw continues plain text; leave out --chat, --system and --tools, or leave out --raw")
    first = None if chat and prompt is None else _prompt(prompt)
    defaults = read_defaults(folder)
    sampler = Sampler(chosen_sampling(defaults, **sampling), seed)
    # Whoever says how many tokens wants them, up to the context; model_max_length is a default.
    length, max_new_tokens = (defaults.length, MAX_NEW_TOKENS) if max_new_tokens is None else (None, max_new_tokens)
    tokenizer = ChatTokenizer(folder)
    model = BufferedModel(OnnxModel(folder, dtype, threads=threads))
    why = f" ({defaults.source})" if sampler.sampling == defaults.sampling else ""
    say(f"[{described(sampler.sampling)}{why}]", err=True)
    for name in unused_values(defaults.generation):
        say(f"[{name} of generation_config.json is not used]", err=True)
    if first is not None and (raw or (not tokenizer.has_chat_template and not chat)):
        generated = stream(
            model,
            tokenizer,
            tokenizer.encode(first),
            max_new_tokens=max_new_tokens,
            on_text=_write,
            sampler=sampler,
            eos_ids=defaults.eos_ids,
            length=length,
            draft=draft == "ngram",
        )
        _finish(generated, sampler)
        _pass_on(generated, chat)
        return
    conversation = Conversation(
        model,
        tokenizer,
        eos_ids=defaults.eos_ids,
        max_new_tokens=max_new_tokens,
        sampler=sampler,
        tools=functions,
        system=system,
        length=length,
        draft=draft == "ngram",
    )
    for message in _messages(first, chat):
        answer = conversation.ask(message, on_text=_write, skip_special=functions is None)
        _finish(answer.generated, sampler)
        for call in answer.calls.calls:
            say(f"tool call: {call}")
        for error in answer.calls.errors:
            say(f"tool call not understood: {error}", err=True)
        _pass_on(answer.generated, chat)


def _messages(first: str | None, chat: bool) -> Iterator[str]:
    """The first message, then, in a chat, every further line of the input."""
    if first is not None:
        yield first.strip()
    if not chat:
        return
    interactive = sys.stdin.isatty()
    while True:
        if interactive:
            click.echo("> ", nl=False, err=True)
        line = sys.stdin.buffer.readline(MAX_TEXT_BYTES)
        if not line:
            return
        message = decode(line, "a line of the input", PromptError, "give UTF-8").strip()
        if message:
            yield message


def _prompt(given: str | None) -> str:
    """The prompt of the option, or else all of stdin."""
    if given is None:
        data = sys.stdin.buffer.read(MAX_TEXT_BYTES + 1)
        if len(data) > MAX_TEXT_BYTES:
            raise PromptError(f"the prompt on stdin has more than {MAX_TEXT_BYTES:,} bytes; give a shorter one")
        given = decode(data, "the prompt on stdin", PromptError, "give UTF-8")
    if not given.strip():
        raise PromptError("the prompt is empty; give some words with -p, or on stdin")
    return given


def _argument(text: str | None, option: str) -> str | None:
    """`text` as UTF-8, which Python has not read it as where the locale says ASCII."""
    return None if text is None else decode(os.fsencode(text), option, PromptError, "give UTF-8")


def _write(text: str) -> None:
    """A piece of the answer: to a file or a pipe as it is, to a terminal without commands for it."""
    click.echo(on_terminal(text) if sys.stdout.isatty() else text, nl=False)


def _pass_on(generated: Generated[Any], chat: bool) -> None:
    """A Ctrl-C ends an answer early, and the command too, unless a person goes on talking."""
    from lfm2export.generation.loop import Stop

    if generated.stop is Stop.INTERRUPTED and not (chat and sys.stdin.isatty()):
        raise KeyboardInterrupt


def _finish(generated: Generated[Any], sampler: Sampler) -> None:
    """End the line, and say on stderr how fast it was and how to get the same answer again."""
    click.echo()
    rates = [
        f"{rate:.1f} tokens/s {name}"
        for name, rate in (("prefill", generated.prefill_rate), ("decode", generated.decode_rate))
        if rate is not None
    ]
    how = "greedy" if sampler.sampling.greedy else f"seed {sampler.seed}"
    if generated.drafted:
        rates.append(f"{generated.accepted} of {generated.drafted} drafts right")
    say(f"[{len(generated.tokens)} tokens, {generated.stop.value}; {', '.join(rates)}; {how}]", err=True)
