"""The command `localcoder`: finds the subcommand, and turns every failure into one line and an exit code.

Exit codes: 0 done, 1 the reader of our output went away, 2 an error that the message explains, 130 interrupted with
Ctrl-C, 128 + N ended by another signal of that number, such as 143 for SIGTERM.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import itertools
import logging
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import click

from localcoder.cli.messages import show_error, show_note
from localcoder.errors import LocalcoderError

# The help is repeated from the commands (a test compares them), so that `localcoder --help` imports none of them.
COMMANDS = {
    "run": "Complete a prompt.",
    "complete": "Complete the code at a place in a file.",
    "edit": "Change a file, or lines of it, as WHAT says.",
    "explain": "Explain a file, or lines of it.",
    "test": "Write tests for a file, or for lines of it.",
    "review": "Review a change, a diff on stdin.",
    "pull": "Fetch a model.",
    "list": "List the models on this machine.",
    "rm": "Delete models from this machine.",
    "config": "Show the defaults of options that are set, and what can be set.",
    "convert": "Convert a Hugging Face checkpoint into a GGUF file.",
    "quantize": "Quantize a GGUF file.",
    "doctor": "Find and repair what makes a model file talk nonsense.",
    "inspect": "Show what is in a GGUF file.",
    "tokenize": "Turn text into token ids.",
    "imatrix": "Collect an importance matrix for the quantizers by running MODEL over a text.",
    "perplexity": "Measure how well a model predicts a text.",
    "eval": "Measure how many programming problems a model solves.",
    "compare": "Compare the weights of two GGUF files, tensor by tensor.",
    "plan": "Forecast the memory that a model takes when it runs.",
    "bench": "Measure speed: prefill and decode.",
    "devices": "Show what this machine can compute with, and what is used.",
}
HELP_OPTIONS = {"-h", "--help"}
EXIT_BROKEN_PIPE = 1
EXIT_ERROR = 2
EXIT_INTERRUPTED = 128 + 2


class CommandLine(click.Group):
    """A group whose command NAME is the object NAME of the module localcoder.cli.NAME, imported when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"localcoder.cli.{cmd_name}"), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The subcommand; unless only its help is asked for, the user's configuration gives its defaults."""
        name, command, rest = super().resolve_command(ctx, args)
        options = itertools.takewhile(lambda word: word != "--", rest)
        if name is not None and command is not None and not HELP_OPTIONS.intersection(options):
            from localcoder.cli.settings import Defaults

            ctx.default_map = {name: Defaults(command)}
        return name, command, rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(self, *args: Any, **options: Any) -> Any:
        """Runs a command line and exits the process; see the top of this file for the exit codes."""
        _prepare_streams()
        options |= {"standalone_mode": False, "prog_name": "localcoder"}
        if os.environ.get("NO_COLOR"):
            options["color"] = False
        with _notes_on_stderr(), _signals_unwind():
            try:
                code = super().main(*args, **options)
                sys.stdout.flush()
            except (KeyboardInterrupt, click.Abort):
                code = EXIT_INTERRUPTED
            except click.ClickException as error:
                code = _fail(error.format_message())
            except LocalcoderError as error:
                code = _fail(str(error))
            except MemoryError:
                code = _fail("out of memory")
            except OSError as error:
                code = _fail_os(error)
        sys.exit(code if isinstance(code, int) else 0)


def _show_version(ctx: click.Context, option: click.Parameter, value: bool) -> None:
    if value:
        from localcoder.version import package_version

        click.echo(f"localcoder {package_version()}")
        ctx.exit()


@click.group(cls=CommandLine, context_settings={"help_option_names": sorted(HELP_OPTIONS)})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version, help="Show the version."
)
def main() -> None:
    """A quantized local runtime for the DeepSeek-Coder models."""


def _fail(message: str) -> int:
    show_error(message)
    return EXIT_ERROR


def _fail_os(error: OSError) -> int:
    if error.errno == errno.EPIPE:  # on a last flush; click sees to those before
        with contextlib.suppress(OSError):  # Python flushes once more at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    problem = error.strerror or str(error)
    return _fail(f"{error.filename}: {problem}" if error.filename else problem)


def _prepare_streams() -> None:
    """UTF-8 in pipes and files whatever the locale; on a terminal its own encoding, never an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            if stream.isatty():
                stream.reconfigure(errors="replace")
            else:
                stream.reconfigure(encoding="utf-8", errors="replace")


@contextlib.contextmanager
def _signals_unwind() -> Iterator[None]:
    """Signals that ask a process to end raise SystemExit, so that what is being written is cleared away, as on Ctrl-C.

    One that is ignored, as `nohup` arranges, stays so.
    """

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {}
    for name in ("SIGTERM", "SIGHUP", "SIGBREAK"):  # not every system has all
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            with contextlib.suppress(ValueError):  # not in the main thread
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _NoteHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        show_note(record.getMessage())


@contextlib.contextmanager
def _notes_on_stderr() -> Iterator[None]:
    log = logging.getLogger("localcoder")
    handler = _NoteHandler(logging.WARNING)
    log.addHandler(handler)
    propagate, log.propagate = log.propagate, False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = propagate
