"""What `convert` and `quantize` share: options, the choice they make, and what they show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from localcoder.convert.recipes import NAMES, Override, recipe_by_name

if TYPE_CHECKING:
    from localcoder.convert.stream import Choice, Outcome

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

TYPES_NOTE = f"Types: {', '.join(NAMES)}."
_OPTIONS = (
    click.option(
        "--imatrix", "imatrix_file", type=click.Path(path_type=Path), metavar="FILE",
        help="Importance matrix that guides the rounding: of `localcoder imatrix` or llama-imatrix.",
    ),
    click.option(
        "--tensor-type", "tensor_types", multiple=True, metavar="PATTERN=TYPE",
        help="A type for the matrices in whose names a regular expression is found; may be repeated, the first counts.",
    ),
    click.option("--dry-run", is_flag=True, help="Only show each tensor's type and the resulting size."),
)  # fmt: skip


def quantizing_options(command: Decorated) -> Decorated:
    """--imatrix, --tensor-type and --dry-run."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def make_choice(type_name: str, imatrix_file: Path | None, tensor_types: tuple[str, ...]) -> Choice:
    """Reads the options; OptionError and FileError say what is wrong with them."""
    from localcoder.convert.stream import Choice
    from localcoder.files.imatrix import ImportanceMatrix

    recipe = recipe_by_name(type_name)
    overrides = tuple(map(Override.parse, tensor_types))
    return Choice(recipe, overrides, ImportanceMatrix.open(imatrix_file) if imatrix_file else None)


def show_plan(outcome: Outcome) -> None:
    """Prints the table of `--dry-run`."""
    rows = [("tensor", "shape", "type", "bytes")]
    for tensor in outcome.tensors:
        info = tensor.info
        rows.append((info.name, " x ".join(map(str, info.shape)), info.qtype.name, f"{info.nbytes:,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, shape, kind, size in rows:
        click.echo(f"{name:{widths[0]}}  {shape:>{widths[1]}}  {kind:{widths[2]}}  {size:>{widths[3]}}")
    n_bytes = f"{outcome.n_bytes:,} bytes ({outcome.n_bytes / 2**20:,.1f} MiB)"
    click.echo(f"the file would take {n_bytes}, {outcome.bits_per_weight:.2f} bits per weight")
