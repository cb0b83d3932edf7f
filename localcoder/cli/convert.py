"""`localcoder convert`: a Hugging Face checkpoint becomes a GGUF file."""

from __future__ import annotations

from pathlib import Path

import click

from localcoder.cli.common import byte_progress, threads_option
from localcoder.convert.recipes import NAMES, recipe_by_name


@click.command()
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--type", "type_name", type=click.Choice(NAMES, case_sensitive=False), default="q8_0", show_default=True,
    help="What the matrices become.",
)  # fmt: skip
@click.option("--name", help="The model's name in the file.  [default: the folder's]")
@threads_option
def convert(source: Path, out: Path, type_name: str, name: str | None, threads: int | None) -> None:
    """Convert a Hugging Face checkpoint into a GGUF file.

    SRC is a folder with config.json, tokenizer.json and weights as safetensors or torch .bin files, whole or sharded.
    """
    from localcoder.backends.select import open_backend
    from localcoder.convert.converter import convert as convert_checkpoint

    backend = open_backend(threads=threads)
    try:
        with byte_progress(f"{out.name} ({type_name})") as progress:
            convert_checkpoint(
                source, out, recipe_by_name(type_name), quantize=backend.quantize_best, name=name, progress=progress
            )
    finally:
        backend.close()
    click.echo(f"wrote {out}: {out.stat().st_size / 2**20:,.1f} MiB", err=True)
