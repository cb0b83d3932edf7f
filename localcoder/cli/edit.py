"""`localcoder edit`: changes a file as it is told to."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from localcoder.assist.prompts import code_block
from localcoder.cli.asking import Asking, Excerpt, ask, asking_options, read_excerpt
from localcoder.cli.common import echo_json
from localcoder.cli.messages import show_note
from localcoder.cli.source import echo_diff, unified_diff
from localcoder.errors import ContextLengthError, OptionError

if TYPE_CHECKING:
    from localcoder.coder import Coder
    from localcoder.session.generation import Completion

_ROOM_TO_GROW = 2  # an answer may be so many times as long as the code
_ROOM_BESIDE = 256  # and this many tokens for what is said around it


@click.command()
@click.argument("place", metavar="FILE[:A-B]")
@click.argument("instruction", metavar="WHAT")
@click.option("--yes", is_flag=True, help="Apply the change without asking.")
@asking_options
def edit(place: str, instruction: str, yes: bool, asking: Asking, options: dict[str, Any]) -> None:
    """Change a file, or lines of it, as WHAT says.

    A and B are the first and the last line. The change is shown as a diff and applied if you agree; without a terminal
    only with --yes. This takes a model that was tuned for instructions. What stays as it is is guessed ahead and so
    costs little.
    """
    if place == "-":
        raise click.UsageError("a file is expected, not stdin")
    excerpt = read_excerpt(place)
    if not instruction.strip():
        raise OptionError("WHAT is empty; say what to change")
    with asking.open() as coder:
        done = _rewrite(coder, excerpt, instruction, options)
        model = str(coder.path)
    code = code_block(done.text, to_last="```" in excerpt.text)
    if code is None:
        raise OptionError("the model gave no complete code block; nothing was changed (is it an instruct model?)")
    text = excerpt.replaced_by(code)
    is_changed = text != excerpt.source.text
    if not asking.as_json:
        echo_diff(excerpt.source, text)
        if not is_changed:
            show_note("the model changes nothing")
    apply = is_changed and (yes or _agrees(asking.as_json))
    if apply:
        excerpt.source.replace(text)
    if asking.as_json:
        diff = "".join(unified_diff(excerpt.source, text))
        echo_json({"model": model, "file": excerpt.source.name, "diff": diff, "applied": apply, **asdict(done)})
    elif is_changed and not apply:
        show_note("nothing was written" + ("" if sys.stdin.isatty() else "; --yes applies the change"))


def _rewrite(coder: Coder, excerpt: Excerpt, instruction: str, options: dict[str, Any]) -> Completion:
    """What the model makes of the lines; all of it.

    Raises:
        ContextLengthError: the answer has no room.
    """
    n_code = len(coder.tokenize(excerpt.text, bos=False))
    if 2 * n_code > coder.n_ctx:
        raise ContextLengthError(
            f"{excerpt.name}: {n_code} tokens, once as they are and once as they become, do not fit in a context of "
            f"{coder.n_ctx}; name fewer lines, as in FILE:A-B, or raise --n-ctx"
        )
    options = {"max_tokens": _ROOM_TO_GROW * n_code + _ROOM_BESIDE, **options, "context_overflow": "stop"}
    generation = ask(coder, "edit", {"instruction": instruction, **excerpt.fields()}, options)
    for _ in generation:
        pass
    done = generation.completion
    if done.finish_reason == "length":
        raise ContextLengthError(
            f"the answer was not complete after {done.n_tokens} tokens; nothing was changed (name fewer lines, as in "
            "FILE:A-B, or raise --max-tokens or --n-ctx)"
        )
    return done


def _agrees(as_json: bool) -> bool:
    on_terminal = sys.stdin.isatty() and not as_json
    return on_terminal and click.confirm("Apply this change?", default=False, err=True)
