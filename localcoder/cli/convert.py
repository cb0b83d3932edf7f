"""`localcoder convert`: a Hugging Face checkpoint becomes a GGUF file."""

from __future__ import annotations

from pathlib import Path

import click

from localcoder.cli.common import byte_progress, threads_option
from localcoder.cli.quantizing import TYPES_NOTE, Wanted, make_choice, quantizing_options, show_plan

DEFAULT_TYPE = "q8_0"


@click.command(epilog=TYPES_NOTE)
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--type", "type_name", help=f"What the matrices become.  [default: {DEFAULT_TYPE}]")
@click.option("--name", help="The model's name in the file.  [default: the folder's]")
@quantizing_options
@threads_option
def convert(
    source: Path,
    out: Path,
    type_name: str | None,
    name: str | None,
    wanted: Wanted,
    threads: int | None,
) -> None:
    """Convert a Hugging Face checkpoint into a GGUF file.

    SRC is a folder with config.json, tokenizer.json and weights as safetensors or torch .bin files, whole or sharded.
    """
    from localcoder.backends.select import open_backend
    from localcoder.convert.converter import convert as convert_checkpoint

    choice = make_choice(type_name, wanted, source, DEFAULT_TYPE)
    backend = open_backend("cpu", threads)
    try:
        with byte_progress(f"{out.name} ({choice.name})") as progress:
            outcome = convert_checkpoint(
                source, out, choice, requantize=backend.requantize, name=name, progress=progress, dry_run=wanted.dry_run
            )
    finally:
        backend.close()
    if wanted.dry_run:
        show_plan(outcome)
    else:
        click.echo(f"wrote {out}: {outcome.n_bytes / 2**20:,.1f} MiB", err=True)
