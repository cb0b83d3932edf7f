"""`localcoder run`: the main job. stdout holds the completion and nothing else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from localcoder.cli.asking import show_answer
from localcoder.cli.common import (
    decode_utf8,
    device_option,
    draft_model_option,
    generation_options,
    given,
    gpu_layers_option,
    json_option,
    kv_type_option,
    model_option,
    n_ctx_option,
    open_coder,
    threads_option,
)
from localcoder.cli.terminal.conversation import Conversation
from localcoder.cli.terminal.loop import prompt_loop
from localcoder.errors import OptionError
from localcoder.store.folder import find_model, find_stored
from localcoder.store.names import SHORT_NAMES, parse_name

_DEMONSTRATION = {"repeat_penalty": 1.2}  # without it, so small a model soon repeats one line for ever


@click.command()
@click.argument("words", nargs=-1, metavar="[MODEL.gguf] [PROMPT]")
@model_option
@generation_options
@threads_option
@device_option
@gpu_layers_option
@kv_type_option
@n_ctx_option
@draft_model_option
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
    gpu_layers: int | None,
    kv_type: str,
    n_ctx: int | None,
    draft_model: Path | None,
    chat: bool | None,
    system: str | None,
    session: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Complete a prompt.

    An instruct model answers the prompt instead, and in a prompt loop it remembers the conversation. A first argument
    that ends in .gguf, or is the name of a model here, is the model. Without PROMPT, or with `-`, the prompt is read
    from a pipe on stdin (one line break at its end is dropped); on a terminal, a prompt loop opens. The embedded
    demonstration model runs with --repeat-penalty 1.2 unless told otherwise.
    """
    model, prompt = _model_and_prompt(words, model)
    interactive = prompt is None and sys.stdin.isatty()
    if not interactive:
        prompt = _prompt_text(prompt)
    with open_coder(
        model,
        n_ctx=n_ctx,
        threads=threads,
        device=device,
        gpu_layers=gpu_layers,
        kv_type=kv_type,
        draft_model=draft_model,
    ) as coder:
        if session is not None and session.exists():
            coder.load_session(session)
        if system is not None and chat is None:
            chat = True
        is_chat = coder.is_instruct if chat is None else chat
        chosen = (_DEMONSTRATION if model is None else {}) | given(options)
        conversation = Conversation(coder, is_chat=is_chat, system=system, options=chosen)
        if prompt is None:
            prompt_loop(coder, conversation, as_json=as_json)
        else:
            show_answer(coder, conversation.ask(prompt), as_json, is_chat=is_chat, language=options["syntax"])
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
