"""The commands of the prompt, which begin with a slash."""

from __future__ import annotations

import base64
import contextlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from localcoder.assist.prompts import code_block
from localcoder.errors import OptionError, printable

if TYPE_CHECKING:
    from localcoder.cli.terminal.conversation import Conversation
    from localcoder.coder import Coder

_CLIPBOARDS = (["pbcopy"], ["wl-copy"], ["xclip", "-selection", "clipboard"], ["clip.exe"])
_MOST_CLIPBOARD = 74_994  # bytes that terminals take by their escape sequence


@dataclass
class Desk:
    """What the commands work on.

    Attributes:
        question: to be asked when the command is done; None: none.
        is_over: whether the loop is to end.
    """

    coder: Coder
    conversation: Conversation
    question: str | None = None
    is_over: bool = False


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        argument: how what follows it is called in the help; "" where nothing may.
        run: does it; gets what follows the command.
    """

    argument: str
    help: str
    run: Callable[[Desk, str], None]


def _say(text: str) -> None:
    click.echo("\n".join(map(printable, text.split("\n"))), err=True)


def _help(desk: Desk, _: str) -> None:
    width = max(len(f"/{name} {command.argument}") for name, command in COMMANDS.items())
    for name, command in COMMANDS.items():
        _say(f"{f'/{name} {command.argument}':{width}}  {command.help}")
    _say("Enter sends, Alt-Enter begins a new line, Ctrl-C stops an answer, Ctrl-D ends.")
    _say("A text that begins with a slash is sent if it begins with two.")


def _system(desk: Desk, text: str) -> None:
    if not desk.conversation.is_chat:
        raise OptionError("this model completes text; a system prompt is for a conversation (--chat)")
    if text:
        desk.conversation.system = text
    _say(f"system prompt: {desk.conversation.system or 'the one of the model'}")


def _file(desk: Desk, path: str) -> None:
    _say(f"{path}: {desk.conversation.attach(path)} tokens, sent with your next message")


def _clear(desk: Desk, _: str) -> None:
    desk.conversation.clear()
    _say("all is forgotten")


def _save(desk: Desk, path: str) -> None:
    desk.conversation.save(path)
    _say(f"wrote {path}")


def _load(desk: Desk, path: str) -> None:
    desk.conversation.load(path)
    _say(f"{len(desk.conversation.messages) // 2} turns taken up")


def _undo(desk: Desk, _: str) -> None:
    desk.conversation.undo()
    _say(f"forgotten; {len(desk.conversation.messages) // 2} turns are left")


def _retry(desk: Desk, _: str) -> None:
    desk.question = desk.conversation.undo()


def _set(desk: Desk, words: str) -> None:
    key, _, value = words.partition(" ")
    if key:
        desk.conversation.set_option(key, value.strip())
    options = desk.conversation.options
    _say("\n".join(f"{name} = {value}" for name, value in options.items() if value != ()) or "all are the defaults")


def _stats(desk: Desk, _: str) -> None:
    done = desk.conversation.last
    if done is None:
        raise OptionError("there is no answer yet")
    times = done.timings
    _say(
        f"{done.n_tokens} tokens at {times.decode_tps:.1f} per second, the first after {times.first_token_s:.2f} s\n"
        f"{done.n_prompt_tokens} tokens of prompt, {times.n_prefill} of them computed, at {times.prefill_tps:.1f} per "
        f"second\n{done.n_accepted} of {done.n_drafted} guessed tokens were right\n"
        f"{desk.conversation.n_positions} of {desk.coder.n_ctx} positions of the context are used"
    )


def _copy(desk: Desk, _: str) -> None:
    if desk.conversation.last is None:
        raise OptionError("there is no answer yet")
    answer = desk.conversation.last.text
    code = code_block(answer)
    copy_to_clipboard(answer if code is None else code)
    _say(f"copied the {'answer' if code is None else 'first code block'}")


def _exit(desk: Desk, _: str) -> None:
    desk.is_over = True


COMMANDS: dict[str, Command] = {
    "help": Command("", "shows this", _help),
    "system": Command("[TEXT]", "shows or sets the system prompt", _system),
    "file": Command("PATH", "sends a file with the next message", _file),
    "clear": Command("", "forgets what was said", _clear),
    "save": Command("PATH", "writes the conversation to a file", _save),
    "load": Command("PATH", "takes up the conversation of a file", _load),
    "undo": Command("", "forgets the last question and its answer", _undo),
    "retry": Command("", "asks the last question again", _retry),
    "set": Command("[KEY [VALUE]]", "shows options, sets one, or sets one back", _set),
    "stats": Command("", "shows how long the last answer took, and how full the context is", _stats),
    "copy": Command("", "puts the answer's first code block, or all of it, into the clipboard", _copy),
    "exit": Command("", "ends", _exit),
}


def run_command(desk: Desk, line: str) -> None:
    """Runs the command that `line`, which begins with a slash, spells.

    Raises:
        OptionError: there is no such command, or it takes nothing; as the command itself.
    """
    name, _, rest = line[1:].strip().partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        raise OptionError(f"unknown command /{name}; /help lists them")
    if rest.strip() and not command.argument:
        raise OptionError(f"/{name} takes nothing after it")
    command.run(desk, rest.strip())


def copy_to_clipboard(text: str) -> None:
    """By the system's program for that, or else by asking the terminal (OSC 52).

    Raises:
        OptionError: the text is too long for that.
    """
    for words in _CLIPBOARDS:
        program = shutil.which(words[0])
        if program:
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                subprocess.run([program, *words[1:]], input=text.encode(), check=True, timeout=5, capture_output=True)
                return
    data = base64.b64encode(text.encode())
    if len(data) > _MOST_CLIPBOARD or not sys.stdout.isatty():
        raise OptionError("there is no program for the clipboard here, and the terminal cannot take so much")
    sys.stdout.write(f"\x1b]52;c;{data.decode()}\x07")
    sys.stdout.flush()
