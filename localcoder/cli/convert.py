"""`localcoder convert`: a Hugging Face checkpoint becomes a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from localcoder.cli.common import byte_progress, threads_option
from localcoder.cli.quantizing import TYPES_NOTE, Wanted, make_choice, quantizing_options, show_plan
from localcoder.errors import OptionError

if TYPE_CHECKING:
    from localcoder.convert.choice import Choice
    from localcoder.store.names import ModelName

DEFAULT_TYPE = "q8_0"


@click.command(epilog=TYPES_NOTE)
@click.argument("source", metavar="SRC")
@click.argument("out", required=False, type=click.Path(path_type=Path))
@click.option("--type", "type_name", help=f"What the matrices become.  [default: {DEFAULT_TYPE}]")
@click.option("--name", help="The model's name in the file.  [default: the folder's]")
@quantizing_options
@threads_option
def convert(
    source: str,
    out: Path | None,
    type_name: str | None,
    name: str | None,
    wanted: Wanted,
    threads: int | None,
) -> None:
    """Convert a Hugging Face checkpoint into a GGUF file.

    SRC is a folder with config.json, tokenizer.json and weights as safetensors or torch .bin files, whole or sharded;
    or OWNER/NAME on the Hugging Face hub, or a short name such as deepseek-coder:1.3b-base, which is fetched if it is
    not on this machine yet. Then OUT may be left out: the result is a model of the model folder.
    """
    from localcoder.store.folder import path_of
    from localcoder.store.names import ModelName, parse_name

    folder = Path(source)
    repo = None if "\0" in source or folder.exists() else parse_name(source)
    if repo is not None and repo.type_name:
        raise OptionError(f"{source}: the type goes into --type")
    if repo is not None:
        folder = _checkpoint_of(repo)
        name = name or repo.repo.split("/")[1]
    choice = make_choice(type_name, wanted, folder, DEFAULT_TYPE)
    if out is None:
        if repo is None or choice.budget is not None:
            raise click.UsageError("Missing argument 'OUT'.")
        out = path_of(ModelName(repo.repo, choice.recipe.name))
    convert_checkpoint(folder, out, choice, name=name, threads=threads, dry_run=wanted.dry_run)


def _checkpoint_of(name: ModelName) -> Path:
    """The checkpoint of a repository, from the model folder or else from the hub."""
    from localcoder.store.folder import CHECKPOINT, path_of, remove_empty
    from localcoder.store.hub import fetch_checkpoint, is_offline, look_up
    from localcoder.store.names import ModelName

    folder = path_of(ModelName(name.repo, CHECKPOINT))
    if folder.is_dir() and is_offline():
        return folder
    try:
        repository = look_up(name.repo)
        with byte_progress(name.repo) as progress:
            return fetch_checkpoint(repository, progress)
    finally:
        remove_empty(folder)


def convert_checkpoint(
    source: Path, out: Path, choice: Choice, *, name: str | None, threads: int | None, dry_run: bool = False
) -> None:
    """Converts the folder `source`, with a bar, and says what was written."""
    from localcoder.backends.select import open_backend
    from localcoder.convert.converter import convert as convert_tensors

    backend = open_backend("cpu", threads)
    try:
        with byte_progress(f"{out.name} ({choice.name})") as progress:
            outcome = convert_tensors(
                source, out, choice, requantize=backend.requantize, name=name, progress=progress, dry_run=dry_run
            )
    finally:
        backend.close()
    if dry_run:
        show_plan(outcome)
    else:
        click.echo(f"wrote {out}: {outcome.n_bytes / 2**20:,.1f} MiB", err=True)
