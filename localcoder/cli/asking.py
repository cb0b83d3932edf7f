"""What the commands share that put a question about source code to a model: options, the code, and the answer."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from localcoder.assist.prompts import fill_prompt, language_of
from localcoder.cli.common import (
    device_option,
    draft_model_option,
    echo_json,
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
from localcoder.cli.messages import show_note
from localcoder.cli.settings import read_settings
from localcoder.cli.source import Source, read_source, visible
from localcoder.cli.terminal.render import AnswerView, is_plain
from localcoder.errors import OptionError

if TYPE_CHECKING:
    from localcoder.coder import Coder
    from localcoder.session.generation import Completion, Generation

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
MOST_TOKENS = 1024  # of an answer, where no other number is asked for
_RANGE = re.compile(r"(?P<file>.*):(?P<first>[0-9]{1,9})-(?P<last>[0-9]{1,9})", re.DOTALL)


@dataclass(frozen=True)
class Asking:
    """The values of the shared options."""

    model: Path | None
    threads: int | None
    device: str
    gpu_layers: int | None
    kv_type: str
    n_ctx: int | None
    draft_model: Path | None
    as_json: bool

    def open(self) -> Coder:
        """The model."""
        names = ("n_ctx", "threads", "device", "gpu_layers", "kv_type", "draft_model")
        return open_coder(self.model, **{name: getattr(self, name) for name in names})


def asking_options(command: Decorated) -> Decorated:
    """The options of `Asking` as one parameter `asking`, and those of a generation as `options`, a dictionary."""
    names = [field.name for field in fields(Asking)]
    shared = (
        model_option,
        generation_options,
        threads_option,
        device_option,
        gpu_layers_option,
        kv_type_option,
        n_ctx_option,
        draft_model_option,
        json_option,
    )

    @functools.wraps(command)
    def run(**values: Any) -> Any:
        asking = Asking(*(values.pop(name) for name in names))
        own = {name: values.pop(name) for name in list(values) if name in command.__annotations__}
        return command(asking=asking, options=given(values), **own)

    decorated: Any = run
    for option in reversed(shared):
        decorated = option(decorated)
    return cast(Decorated, decorated)


@dataclass(frozen=True)
class Excerpt:
    """Lines of a file.

    Attributes:
        start, end: offsets in the file's text.
        name: of the file, with the lines if they are not all.
    """

    source: Source
    start: int
    end: int
    name: str

    @property
    def text(self) -> str:
        return self.source.text[self.start : self.end]

    def fields(self) -> dict[str, str]:
        """What prompts say about it."""
        ended = self.text if self.text.endswith("\n") else self.text + "\n"
        path = self.source.path
        return {"path": self.name, "language": language_of(path.name if path else None), "code": ended}

    def replaced_by(self, code: str) -> str:
        """The file's text with `code` in place of these lines, indented as they are."""
        if not self.text.endswith("\n"):
            code = code.removesuffix("\n")
        return self.source.text[: self.start] + _indented_as(self.text, code) + self.source.text[self.end :]


def read_excerpt(place: str) -> Excerpt:
    """FILE, or FILE:A-B for its lines A to B, counted from 1; `-` is stdin.

    Raises:
        FileError, OptionError: it cannot be read, is no text, is empty, or has no such lines.
    """
    match = None if Path(place).is_file() else _RANGE.fullmatch(place)
    file = match["file"] if match else place
    source = read_source(None if file == "-" else Path(file))
    lines = source.text.splitlines(keepends=True) if not match else source.text.split("\n")
    if not source.text.strip():
        raise OptionError(f"{source.name}: is empty; there is nothing to ask about")
    if not match:
        return Excerpt(source, 0, len(source.text), source.name)
    first, last = int(match["first"]), int(match["last"])
    n_lines = len(lines) - (not lines[-1])
    if not 1 <= first <= last <= n_lines:
        raise OptionError(f"{source.name}: no lines {first}-{last}; it has {n_lines}")
    start = sum(len(line) + 1 for line in lines[: first - 1])
    end = min(start + sum(len(line) + 1 for line in lines[first - 1 : last]), len(source.text))
    if not source.text[start:end].strip():
        raise OptionError(f"{source.name}: lines {first}-{last} are blank; there is nothing to ask about")
    return Excerpt(source, start, end, f"{source.name}, lines {first} to {last}")


def _indented_as(text: str, code: str) -> str:
    """`code`, indented like `text` where the model has moved it to the left margin."""
    margin = _margin(text)
    if not margin or _margin(code):
        return code
    return "".join(margin + line if line.strip() else line for line in code.splitlines(keepends=True))


def _margin(text: str) -> str:
    """The white space that all lines of `text` begin with."""
    lines = [line for line in text.split("\n") if line.strip()]
    first, last = min(lines, default=""), max(lines, default="")
    n_same = next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last)))
    return first[: len(first[:n_same]) - len(first[:n_same].lstrip())]


def ask(coder: Coder, name: str, values: dict[str, str], options: dict[str, Any]) -> Generation:
    """The answer to the prompt of that name, which has not begun."""
    prompt = fill_prompt(name, values, read_settings().get("prompts", {}))
    return coder.start_chat(prompt, **{"max_tokens": MOST_TOKENS, **options})


def show_answer(
    coder: Coder, generation: Generation, as_json: bool, *, is_chat: bool = True, language: str | None = None
) -> None:
    """Writes an answer as it comes; after Ctrl-C what there is of it, and the interrupt goes on.

    Args:
        is_chat: whether it is an answer, in which code blocks are coloured on a terminal, rather than code itself.
        language: of that code, if it is known: then it is coloured, too.
    """
    try:
        if as_json:
            for _ in generation:
                pass
        elif (is_chat or language) and not is_plain():
            with AnswerView(language) as view:
                for piece in generation:
                    view.feed(piece)
        else:
            _write_plain(generation)
    finally:
        if as_json:
            echo_json({"model": str(coder.path), **asdict(generation.completion)})
    note_full_context(coder, generation.completion)


def _write_plain(generation: Generation) -> None:
    on_terminal = sys.stdout.isatty()
    try:
        for piece in generation:
            click.echo(visible(piece) if on_terminal else piece, nl=False)
    finally:
        if on_terminal and not generation.completion.text.endswith("\n"):
            click.echo()


def note_full_context(coder: Coder, done: Completion) -> None:
    """Says so if the context was too small for the text."""
    if done.context_is_full:
        way_out = "raise --n-ctx, or forget the oldest text with --on-overflow shift"
        show_note(f"the text ends because the context of {coder.n_ctx} positions is full: {way_out}")
