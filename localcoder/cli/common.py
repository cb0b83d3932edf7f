"""What the commands that run a model share: options, opening the model, progress, JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from localcoder.errors import FileError, OptionError
from localcoder.files.mapped import read_bounded
from localcoder.model.kv_types import KV_TYPES
from localcoder.session.options import OVERFLOWS, SAMPLERS, SYNTAXES, GenerationOptions, Range

if TYPE_CHECKING:
    from localcoder.coder import Coder

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_MOST_GRAMMAR_BYTES = 1 << 20

if TYPE_CHECKING:
    _PathType = click.ParamType[Path]
    _CountType = click.ParamType[int | None]
else:
    _PathType = _CountType = click.ParamType


class ModelFile(_PathType):
    """A GGUF file, by its path or by the name of a model on this machine."""

    name = "model"

    def convert(self, value: str | Path, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        from localcoder.store.folder import find_model

        return value if isinstance(value, Path) else find_model(value)


MODEL_FILE = ModelFile()
model_option = click.option(
    "-m", "--model", type=MODEL_FILE, envvar="LOCALCODER_MODEL", metavar="FILE",
    help="A GGUF file, or a model's name; also read from LOCALCODER_MODEL.  "
    "[default: the embedded demonstration model]",
)  # fmt: skip
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
threads_option = click.option("--threads", type=int, help="Threads to compute with.  [default: the cores at hand]")
kv_type_option = click.option(
    "--kv-type", type=click.Choice(KV_TYPES), default=KV_TYPES[0], show_default=True, help="Type of the KV cache."
)  # fmt: skip
draft_model_option = click.option(
    "--draft-model", type=MODEL_FILE, metavar="FILE", help="A smaller model of the same vocabulary, to guess ahead."
)
device_option = click.option(
    "--device", default="auto", show_default=True,
    help="What to compute on: auto, cpu, cuda or cuda:N; see `localcoder devices`.",
)  # fmt: skip


class LayerCount(_CountType):
    """A number of layers, or `auto`."""

    name = "layers"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if str(value) == "auto":
            return None
        if not str(value).isdecimal():
            self.fail(f"{value!r} is neither a number nor auto", param, ctx)
        return int(value)


gpu_layers_option = click.option(
    "--gpu-layers", type=LayerCount(), default="auto", metavar="N", show_default=True,
    help="How many layers cards compute, counted from the last; auto: as many as fit.",
)  # fmt: skip
n_ctx_option = click.option(
    "--n-ctx", type=int, help="Positions of the context.  [default: what the model was trained for]"
)


def _bias_of(ctx: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[int, float] | None:
    """ID=NUMBER, several of them."""
    try:
        return {int(token): float(number) for token, number in (value.split("=") for value in values)} or None
    except ValueError:
        raise click.BadParameter("expected ID=NUMBER, with a token id") from None


def _names_of(ctx: click.Context, option: click.Parameter, value: str | None) -> list[str] | None:
    return None if value is None else value.replace(",", " ").split()


def _text_that_is(ctx: click.Context, option: click.Parameter, path: Path | None) -> str | None:
    """What a file holds, once it is known to be a schema or grammar."""
    if path is None or option.name is None:
        return None
    from localcoder.session.grammar.matcher import check_grammar, load_library

    load_library()
    text = decode_utf8(read_bounded(path, _MOST_GRAMMAR_BYTES, FileError), str(path))
    chosen: dict[str, Any] = {option.name: text}
    try:
        check_grammar(GenerationOptions(**chosen))
    except OptionError as error:
        raise FileError(path, str(error).removeprefix(f"{option.name}: ")) from None
    return text


_OPTIONS_OF_THEIR_OWN: dict[str, Callable[[Any], Any]] = {  # of fields that are no numbers
    "stop": click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be repeated."),
    "logit_bias": click.option(
        "--logit-bias", multiple=True, metavar="ID=NUMBER", callback=_bias_of,
        help="Add to a token's logit; may be repeated.",
    ),
    "samplers": click.option(
        "--samplers", metavar="NAMES", callback=_names_of,
        help=f"Filters in their order.  [default: {','.join(SAMPLERS)}]",
    ),
    "context_overflow": click.option(
        "--on-overflow", "context_overflow", type=click.Choice(OVERFLOWS),
        help=f"In a full context, end the text, or forget the oldest and go on.  [default: {OVERFLOWS[0]}]",
    ),
    "speculate": click.option(
        "--speculate/--no-speculate", default=None,
        help="Guess what repeats itself; the text is the same.  [default: on]",
    ),
    "regex": click.option("--regex", metavar="TEXT", help="The text matches this regular expression, as a whole."),
    "json_schema": click.option(
        "--json-schema", type=click.Path(path_type=Path), metavar="FILE", callback=_text_that_is,
        help="The text is JSON that fits the schema in this file.",
    ),
    "grammar": click.option(
        "--grammar", type=click.Path(path_type=Path), metavar="FILE", callback=_text_that_is,
        help="The text is one of the grammar (GBNF) in this file.",
    ),
    "syntax": click.option(
        "--syntax", type=click.Choice(SYNTAXES), help="Prompt and text are, at each token, how some such file begins."
    ),
}  # fmt: skip
FOR_PYTHON = {"on_token", "penalize_prompt"}


def generation_options(command: Decorated) -> Decorated:
    """One option for every field of GenerationOptions that a terminal can give, as a parameter of that name; None: not
    given."""
    for spec in reversed(fields(GenerationOptions)):
        name = "--" + spec.name.replace("_", "-")
        if spec.name in _OPTIONS_OF_THEIR_OWN:
            option = _OPTIONS_OF_THEIR_OWN[spec.name]
        elif spec.name in FOR_PYTHON:
            continue
        else:
            range_: Range = spec.metadata["range"]
            kind = int if str(spec.type).startswith("int") else float
            shown = "" if spec.default is None else f"  [default: {spec.default:g}]"
            option = click.option(name, type=kind, help=range_.help + shown)
        command = option(command)
    return command


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given on the command line."""
    return {name: value for name, value in options.items() if value is not None}


def open_coder(path: Path | None, **options: Any) -> Coder:
    """The model FILE, or the embedded one; closes it with `with`."""
    from localcoder.coder import Coder

    return Coder(path, **options)


def read_text(path: Path) -> str:
    """A UTF-8 text file.

    Raises:
        FileError: it is not there or not UTF-8 text.
    """
    try:
        return decode_utf8(path.read_bytes(), str(path))
    except OSError as error:
        raise FileError(path, (error.strerror or str(error)).lower()) from None


def decode_utf8(data: bytes, source: str) -> str:
    """Text from UTF-8; a byte order mark is dropped.

    Raises:
        OptionError: says where it is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise OptionError(f"{source}: not UTF-8 text (byte 0x{data[error.start]:02x} at {error.start})") from None


def echo_json(value: object) -> None:
    """Prints one JSON object on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


@contextmanager
def step_progress(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on a terminal's stderr while the block runs; call what it yields with (steps done, steps in all, note)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    ) as bar:
        task = bar.add_task(title, total=None, note="")
        yield lambda done, total, note: bar.update(task, completed=done, total=total, note=note)


@contextmanager
def byte_progress(title: str, *, window: float = 30.0) -> Iterator[Callable[[int, int], None]]:
    """As `step_progress`, with the rate and the time left; call with (bytes done, bytes in all).

    Args:
        window: seconds back from which the time left is judged: several times as long as the pauses between calls.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
        speed_estimate_period=window,
    ) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
