"""What the README says: every command and option, and that its examples run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from lfm2export.cli import main
from tiny import write_tiny

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", main.commands)
def test_every_command_and_option_is_in_the_readme(name: str) -> None:
    start = README.index(f"lfm2-export {name} ", README.index("## Commands"))
    described = README[start : README.index("\n\n", start)] if "\n\n" in README[start:] else README[start:]
    for parameter in main.commands[name].params:
        if isinstance(parameter, click.Option):
            for option in (*parameter.opts, *parameter.secondary_opts):
                assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", described), f"{name} {option}"


def examples() -> list[str]:
    """The commands in the READMEs and in the help that a newcomer would type first."""
    found = re.findall(r"^ {0,6}(?:\.venv/bin/)?(lfm2-export [^\[\n]*\./my-lfm2[^\n]*)$", README, re.MULTILINE)
    for command in main.commands.values():
        found += re.findall(r"^ *(lfm2-export .*)$", command.help or "", re.MULTILINE)
    return found


def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path / "my-lfm2", dtype="F32")
    order = ("build", "verify", "report")
    commands = sorted(set(examples()), key=lambda line: next((i for i, n in enumerate(order) if f" {n} " in line), 9))
    assert len(commands) >= 4
    for line in commands:
        arguments = shlex.split(line)[1:]
        if arguments[0] in ("synth", "check-consumers", "serve") or "--runtime" in arguments:  # have tests of their own
            continue
        extra = {"build": ["--force", "--no-verify"], "verify": ["--quick"]}.get(arguments[0], [])
        result = CliRunner().invoke(main, [*arguments, *extra])
        assert result.exit_code == 0, f"{line}: {result.output}"


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
