"""The prompt: editing with history, completion of commands and paths, and a status line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

from localcoder.cli.asking import show_answer
from localcoder.cli.messages import show_error
from localcoder.cli.terminal.commands import COMMANDS, Desk, run_command
from localcoder.cli.terminal.conversation import SETTABLE, Conversation
from localcoder.cli.terminal.render import is_plain
from localcoder.errors import LocalcoderError, OptionError, printable

if TYPE_CHECKING:
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings

    from localcoder.coder import Coder

_PROMPT = "> "


def prompt_loop(coder: Coder, conversation: Conversation, *, as_json: bool) -> None:
    """Asks for prompts and shows the answers until the user ends it."""
    click.echo(f"{printable(coder.path.name)}: /help shows the commands, Ctrl-D ends.", err=True)
    desk = Desk(coder, conversation)
    next_prompt = _editor(desk) if _can_edit() else _next_line
    while not desk.is_over:
        try:
            text = next_prompt()
            if text is None:
                return
            if text.startswith("/") and not text.startswith("//"):
                run_command(desk, text)
            elif text.strip():
                desk.question = text[1:] if text.startswith("//") else text
            if desk.question is not None:
                _answer(desk, as_json)
        except KeyboardInterrupt:
            click.echo(err=True)
        except LocalcoderError as error:
            show_error(str(error))


def _answer(desk: Desk, as_json: bool) -> None:
    assert desk.question is not None
    question, desk.question = desk.question, None
    try:
        conversation = desk.conversation
        language = conversation.options.get("syntax")
        show_answer(desk.coder, conversation.ask(question), as_json, is_chat=conversation.is_chat, language=language)
    finally:
        desk.conversation.settle()


def _can_edit() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def _next_line() -> str | None:
    """A line where there is no terminal to edit on; None at the end of the input."""
    click.echo(_PROMPT, nl=False, err=True)
    try:
        line = sys.stdin.readline()
    except UnicodeDecodeError:
        raise OptionError("that line was not UTF-8 text") from None
    return line.removesuffix("\n") if line else None


def _editor(desk: Desk) -> Callable[[], str | None]:
    """Gives the next prompt, edited by the user; None: the user ends it."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.output import ColorDepth

    session: PromptSession[str] = PromptSession(
        history=_history(),
        multiline=True,
        prompt_continuation="  ",
        key_bindings=_keys(),
        completer=_completer(),
        complete_while_typing=False,
        bottom_toolbar=lambda: _status(desk),
        color_depth=ColorDepth.DEPTH_1_BIT if is_plain() else None,
    )

    def next_prompt() -> str | None:
        try:
            return session.prompt(_PROMPT)
        except EOFError:
            return None

    return next_prompt


def _status(desk: Desk) -> str:
    """The line below the prompt."""
    conversation, n_ctx = desk.conversation, desk.coder.n_ctx
    parts = [printable(desk.coder.path.name)]
    if conversation.last is not None:
        parts.append(f"{conversation.last.timings.decode_tps:.1f} tokens/s")
    used = conversation.n_positions
    parts.append(f"context {used}/{n_ctx} ({100 * used // n_ctx}%)")
    return "  ".join(parts)


def _keys() -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _history() -> History:
    """Of earlier starts, too, where there is a place to keep it; nobody else may read it."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    from localcoder.store.folder import home

    try:
        path = home() / "history"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
        return FileHistory(path)
    except OSError:
        return InMemoryHistory()


def _completer() -> Completer:
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    class SlashCompleter(Completer):
        """Completes a command's name, and then what belongs after it."""

        def get_completions(self, document: Document, event: CompleteEvent) -> Iterator[Completion]:
            text = document.text_before_cursor
            if not text.startswith("/"):
                return
            name, blank, rest = text[1:].partition(" ")
            if not blank:
                for known in COMMANDS:
                    if known.startswith(name):
                        yield Completion(known, -len(name))
            elif COMMANDS.get(name) is not None and COMMANDS[name].argument == "PATH":
                yield from PathCompleter(expanduser=True).get_completions(Document(rest), event)
            elif name == "set" and " " not in rest:
                for key in SETTABLE:
                    if key.startswith(rest):
                        yield Completion(key, -len(rest))

    return SlashCompleter()
