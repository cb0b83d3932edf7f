"""`localcoder quantize`: a GGUF file becomes a smaller one."""

from __future__ import annotations

from pathlib import Path

import click

from localcoder.cli.common import byte_progress, threads_option
from localcoder.cli.quantizing import TYPES_NOTE, make_choice, quantizing_options, show_plan


@click.command(epilog=TYPES_NOTE)
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("type_name", metavar="TYPE")
@quantizing_options
@click.option("--allow-requantize", is_flag=True, help="Accept a file that is quantized already; it loses more.")
@threads_option
def quantize(
    source: Path,
    out: Path,
    type_name: str,
    imatrix_file: Path | None,
    tensor_types: tuple[str, ...],
    dry_run: bool,
    allow_requantize: bool,
    threads: int | None,
) -> None:
    """Quantize a GGUF file.

    IN is a file of floats, such as `localcoder convert --type bf16` writes; TYPE is what its matrices become.
    """
    from localcoder.backends.select import open_backend
    from localcoder.convert.quantizer import quantize_file

    choice = make_choice(type_name, imatrix_file, tensor_types)
    backend = open_backend(threads=threads)
    try:
        with byte_progress(f"{out.name} ({choice.recipe.name})") as progress:
            outcome = quantize_file(
                source, out, choice, quantize=backend.quantize_best, allow_requantize=allow_requantize,
                progress=progress, dry_run=dry_run,
            )  # fmt: skip
    finally:
        backend.close()
    if dry_run:
        show_plan(outcome)
    else:
        click.echo(f"wrote {out}: {outcome.n_bytes / 2**20:,.1f} MiB", err=True)
