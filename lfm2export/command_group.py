"""The group of all commands: how arguments are refused, how a command ends, `--traceback` after any command."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
from click.shell_completion import shell_complete

from lfm2export.console import say
from lfm2export.endings import ending, full_traceback
from lfm2export.exit_codes import ExitCode
from lfm2export.untrusted.escape import one_line

NAME = "lfm2-export"

#: The variable that shells ask for completions with; click's rule for the name.
COMPLETE = "_LFM2_EXPORT_COMPLETE"

_TRACEBACK = "lfm2export.traceback"


class _PathName(click.Path):
    """A path that the file system can have at all; what is there is the command's to say."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not os.fspath(value):
            self.fail("it is empty, expected a path", param, ctx)
        try:
            return super().convert(Path(value).expanduser(), param, ctx)
        except RuntimeError:  # pathlib's, of ~name
            self.fail(f"{value} names the home of a user who is not here, give another path", param, ctx)
        except OSError as error:
            self.fail(f"{value}: {error.strerror}; give another path", param, ctx)


FOLDER = _PathName(path_type=Path, file_okay=False)
FILE = _PathName(path_type=Path, dir_okay=False)


def _keep_traceback(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        context.meta[_TRACEBACK] = True


class _Traceback:
    """Mixin of the group and its commands: one more option, no command's own."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        option = click.Option(
            ["--traceback"],
            is_flag=True,
            expose_value=False,
            callback=_keep_traceback,
            help="After an error, show where it was raised.",
        )
        *own, last = super().get_params(ctx)  # type: ignore[misc]
        return [*own, option, last]


class _Command(_Traceback, click.Command):
    pass


class CommandGroup(_Traceback, click.Group):
    """Every command ends in one of :class:`ExitCode`, an error with one line on stderr."""

    command_class = _Command

    def main(self, args: Sequence[str] | None = None, *_: Any, **__: Any) -> NoReturn:
        """Run the command that `args` (by default the process's) name, and exit."""
        asked = os.environ.get(COMPLETE)
        if asked:
            sys.exit(shell_complete(self, {}, NAME, COMPLETE, asked))
        sys.exit(self._run(list(sys.argv[1:] if args is None else args)))

    def _run(self, arguments: list[str]) -> int:
        traceback = False
        try:
            _check(arguments)
            with self.make_context(NAME, arguments) as context:
                try:
                    self.invoke(context)
                finally:
                    traceback = _TRACEBACK in context.meta
                    sys.stdout.flush()  # what cannot be written fails here, not when the interpreter ends
        except click.exceptions.Exit as done:
            return done.exit_code
        except click.ClickException as error:
            _refuse(error)
            return ExitCode.BAD_INPUT
        except (Exception, KeyboardInterrupt) as error:
            return _end(error, traceback)
        return ExitCode.GOOD


def _check(arguments: Sequence[str]) -> None:
    for argument in arguments:
        if "\0" in argument:
            raise click.UsageError(f"the argument {argument!r} has a zero byte in it, which no name or text has")


def _refuse(error: click.ClickException) -> None:
    """One line for bad usage; the help where there was no argument at all."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context is not None else NAME
    message = " ".join(one_line(error.format_message()).split())
    message = message if message.endswith(("?", "?)")) else f"{message.rstrip('.')};"
    say(f"Error: {message} `{path} --help` lists what it takes", err=True)


def _end(error: BaseException, traceback: bool) -> ExitCode:
    code, line = ending(error)
    if code is ExitCode.OUTPUT_CLOSED:
        _drop_output()
        return code
    with contextlib.suppress(OSError):  # stderr may be what is closed, or full
        if traceback:
            click.echo(full_traceback(error), err=True)
        if line is not None:
            say(line, err=True)
    return code


def _drop_output() -> None:
    """What is still buffered goes nowhere, so that the interpreter does not complain of it at its end."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
