"""`localcoder run`: the main job. stdout holds the completion and nothing else."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from localcoder.cli.asking import show_answer
from localcoder.cli.common import (
    decode_utf8,
    device_option,
    generation_options,
    given,
    json_option,
    kv_type_option,
    model_option,
    n_ctx_option,
    open_coder,
    threads_option,
)
from localcoder.cli.messages import show_error
from localcoder.errors import LocalcoderError, OptionError
from localcoder.store.folder import find_model, find_stored
from localcoder.store.names import SHORT_NAMES, parse_name

if TYPE_CHECKING:
    from localcoder.coder import Coder
    from localcoder.session.generation import Generation


@click.command()
@click.argument("words", nargs=-1, metavar="[MODEL.gguf] [PROMPT]")
@model_option
@generation_options
@threads_option
@device_option
@kv_type_option
@n_ctx_option
@click.option(
    "--chat/--no-chat", default=None, help="Answer, or go on with the text.  [default: as the model was tuned]"
)
@click.option("--system", metavar="TEXT", help="The system prompt of a chat.  [default: the model's own]")
@click.option(
    "--session", type=click.Path(path_type=Path), metavar="FILE", help="Keep what was computed in a file, and use it."
)
@json_option
def run(
    words: tuple[str, ...],
    model: Path | None,
    threads: int | None,
    device: str,
    kv_type: str,
    n_ctx: int | None,
    chat: bool | None,
    system: str | None,
    session: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Complete a prompt.

    An instruct model answers the prompt instead, and in a prompt loop it remembers the conversation. A first argument
    that ends in .gguf, or is the name of a model here, is the model. Without PROMPT, or with `-`, the prompt is read
    from a pipe on stdin (one line break at its end is dropped); on a terminal, a prompt loop opens.
    """
    model, prompt = _model_and_prompt(words, model)
    interactive = prompt is None and sys.stdin.isatty()
    if not interactive:
        prompt = _prompt_text(prompt)
    with open_coder(model, n_ctx=n_ctx, threads=threads, device=device, kv_type=kv_type) as coder:
        if session is not None and session.exists():
            coder.load_session(session)
        if system is not None and chat is None:
            chat = True
        ask = _Conversation(coder, system).ask if chat or (chat is None and coder.is_instruct) else coder.start
        if prompt is None:
            _prompt_loop(coder, ask, as_json, given(options))
        else:
            show_answer(coder, ask(prompt, **given(options)), as_json)
        if session is not None:
            coder.save_session(session)


def _model_and_prompt(words: tuple[str, ...], model: Path | None) -> tuple[Path | None, str | None]:
    left = list(words)
    source = click.get_current_context().get_parameter_source("model")
    if left and source is not click.core.ParameterSource.COMMANDLINE and _names_a_model(left[0]):
        model = find_model(left.pop(0))
    if len(left) > 1:
        raise click.UsageError(f"one prompt expected, {len(left)} given; put quotes around it")
    return model, left[0] if left else None


def _names_a_model(word: str) -> bool:
    """Whether a first argument is the model rather than the prompt: by its ending, or as a name that is known."""
    if word.lower().endswith(".gguf"):
        return True
    name = parse_name(word)
    return name is not None and (name.repo in SHORT_NAMES.values() or find_stored(word) is not None)


def _prompt_text(prompt: str | None) -> str:
    """The prompt, read from stdin where none is given."""
    if prompt is None or prompt == "-":
        prompt = decode_utf8(sys.stdin.buffer.read(), "stdin").removesuffix("\n").removesuffix("\r")
    if not prompt:
        raise OptionError("the prompt is empty; give one as an argument or on stdin")
    return prompt


class _Conversation:
    """What was said so far, by the user and the model."""

    def __init__(self, coder: Coder, system: str | None) -> None:
        self._coder = coder
        self._messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system is not None else []
        self._last: Generation | None = None

    def ask(self, text: str, **options: Any) -> Generation:
        """An answer to `text`, which has not begun; what there is of the one before is what the model said."""
        said = self._messages
        if self._last is not None:
            said = [*said, {"role": "assistant", "content": self._last.completion.text}]
        said = [*said, {"role": "user", "content": text}]
        self._last = self._coder.start_chat(said, **options)
        self._messages = said
        return self._last


def _prompt_loop(coder: Coder, ask: Callable[..., Generation], as_json: bool, options: dict[str, Any]) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives `input` line editing and history, where it exists)
    click.echo(f"{coder.path.name}: Ctrl-C stops an answer; an empty line ends.", err=True)
    while True:
        try:
            prompt = _next_prompt()
            if not prompt:
                return
            show_answer(coder, ask(prompt, **options), as_json)
        except KeyboardInterrupt:
            click.echo(err=True)
        except LocalcoderError as error:
            show_error(str(error))


def _next_prompt() -> str:
    """A line from the terminal; an empty one also at the end of the input."""
    try:
        if sys.stdout.isatty():
            return input("> ")
        click.echo("> ", nl=False, err=True)
        return sys.stdin.readline().removesuffix("\n")
    except EOFError:
        click.echo(err=True)
        return ""
    except UnicodeDecodeError:
        raise OptionError("that line was not UTF-8 text") from None
