"""What `convert` and `quantize` share: options, the choice they make, and what they show."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from localcoder.cli.messages import show_note
from localcoder.convert.recipes import BEST_FIRST, NAMES, Override, recipe_by_name
from localcoder.errors import OptionError

if TYPE_CHECKING:
    from localcoder.convert.choice import Budget, Choice
    from localcoder.convert.stream import Outcome
    from localcoder.measure.plan import Forecast, PlannedModel

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

TYPES_NOTE = f"Types: {', '.join(NAMES)}."


@dataclass(frozen=True)
class Wanted:
    """The values of the shared options."""

    imatrix_file: Path | None
    tensor_types: tuple[str, ...]
    pad_ffn: bool
    target_size: str | None
    target_bpw: float | None
    fit: str | None
    n_ctx: int | None
    dry_run: bool


_OPTIONS = (
    click.option(
        "--imatrix", "imatrix_file", type=click.Path(path_type=Path), metavar="FILE",
        help="Importance matrix that guides the rounding: of `localcoder imatrix` or llama-imatrix.",
    ),
    click.option(
        "--tensor-type", "tensor_types", multiple=True, metavar="PATTERN=TYPE",
        help="A type for the matrices in whose names a regular expression is found; may be repeated, the first counts.",
    ),
    click.option(
        "--pad-ffn", is_flag=True,
        help="Widen the feed-forward part with zeros to a multiple of 256, so that it fits the K-quants. Exact.",
    ),
    click.option("--target-size", metavar="SIZE", help="Share out so many bytes, such as 0.83GB, in place of a type."),
    click.option("--target-bpw", type=float, metavar="BITS", help="The same, by bits per weight."),
    click.option("--fit", metavar="SIZE", help="The best type that runs within so much memory, such as 8GiB."),
    click.option("--n-ctx", type=int, help="With --fit: positions of the context.  [default: as `localcoder plan`]"),
    click.option("--dry-run", is_flag=True, help="Only show each tensor's type and the resulting size."),
)  # fmt: skip


def quantizing_options(command: Decorated) -> Decorated:
    """The options of `Wanted`, as one parameter `wanted`."""
    names = [field.name for field in fields(Wanted)]

    @functools.wraps(command)
    def run(**given: Any) -> Any:
        return command(wanted=Wanted(*(given.pop(name) for name in names)), **given)

    decorated: Any = run
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return cast(Decorated, decorated)


def nothing_wanted() -> Wanted:
    """What those options say where none of them is given."""
    return Wanted(None, (), False, None, None, None, None, False)


def make_choice(type_name: str | None, wanted: Wanted, source: Path, default: str | None = None) -> Choice:
    """Reads the options.

    Args:
        type_name: as given; None: not given.
        source: the model, for `--fit`.
        default: the type where nothing else was asked for.

    Raises:
        OptionError: they contradict each other, or one of them is wrong.
        FileError: a file that they name cannot be used.
    """
    from localcoder.convert.choice import Choice
    from localcoder.files.imatrix import ImportanceMatrix

    ways = [type_name, wanted.target_size, wanted.target_bpw, wanted.fit]
    n_given = sum(way is not None for way in ways)
    if n_given > 1 or (n_given == 0 and default is None):
        raise OptionError("give one of: a type, --target-size, --target-bpw, --fit")
    if wanted.n_ctx is not None and wanted.fit is None:
        raise OptionError("--n-ctx is the context to fit into memory: it needs --fit")
    overrides = tuple(map(Override.parse, wanted.tensor_types))
    if wanted.fit is not None:
        type_name = _best_fit(source, wanted.fit, wanted, overrides)
    recipe = recipe_by_name(type_name or default or _UNDER_BUDGET)
    budget = _budget(wanted)
    imatrix = ImportanceMatrix.open(wanted.imatrix_file) if wanted.imatrix_file else None
    return Choice(recipe, overrides, imatrix, wanted.pad_ffn, budget)


_UNDER_BUDGET = "f32"  # a budget replaces what this says of matrices


def _budget(wanted: Wanted) -> Budget | None:
    from localcoder.convert.choice import Budget
    from localcoder.measure.plan import parse_size

    if wanted.target_size is not None:
        return Budget(file_bytes=parse_size(wanted.target_size))
    if wanted.target_bpw is None:
        return None
    if not 0 < wanted.target_bpw <= _MOST_BITS:
        raise OptionError(f"--target-bpw is {wanted.target_bpw:g}; expected more than 0 and at most {_MOST_BITS}")
    return Budget(bits_per_weight=wanted.target_bpw)


_MOST_BITS = 32


def _best_fit(source: Path, size: str, wanted: Wanted, overrides: Sequence[Override]) -> str:
    """The best type with which the model of `source` runs within `size`; says why.

    Raises:
        OptionError: it runs with none; says what would fit.
    """
    from localcoder.cli.plan import DEFAULT_CTX, model_config
    from localcoder.convert.padding import padded_width
    from localcoder.measure.plan import (
        best_that_fits,
        forecast,
        measure_runtime,
        model_of_recipe,
        most_positions,
        parse_size,
        shown,
    )

    memory, config = parse_size(size), model_config(str(source))
    if wanted.pad_ffn:
        config = replace(config, n_ff=padded_width(config.n_ff))
    n_ctx = min(DEFAULT_CTX, config.n_ctx_train) if wanted.n_ctx is None else wanted.n_ctx
    runtime = measure_runtime()

    def model(type_name: str) -> PlannedModel:
        return model_of_recipe(source.name, config, recipe_by_name(type_name), overrides)

    def planned(type_name: str) -> Forecast:
        return forecast(model(type_name), n_ctx=n_ctx, kv_type="f16", runtime=runtime)

    def fits(there: Forecast) -> bool:
        return there.total <= memory

    found = best_that_fits(source.name, config, fits, n_ctx=n_ctx, kv_type="f16", runtime=runtime, overrides=overrides)
    where = f"with a context of {n_ctx}"
    if found is None:
        least = BEST_FIRST[-1]
        most = most_positions(model(least), fits, planned(least))
        remedy = f"--n-ctx {most} would let {least} fit" if most else "a shorter context would not help"
        raise OptionError(
            f"no type fits in {shown(memory)}: {where} even {least} takes {shown(planned(least).total)}; {remedy}"
        )
    recipe, there = found
    better = BEST_FIRST[: BEST_FIRST.index(recipe.name)][-1:]
    others = "".join(f"; {name} would take {shown(planned(name).total)}" for name in better)
    show_note(f"{recipe.name}: {where} it takes {shown(there.total)} of {shown(memory)}{others}")
    return recipe.name


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
