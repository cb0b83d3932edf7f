"""`localcoder quantize`: a GGUF file becomes a smaller one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from localcoder.cli.common import byte_progress, read_text, threads_option
from localcoder.cli.quantizing import TYPES_NOTE, make_choice, quantizing_options, show_plan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

OURS = "ours"


@click.command(epilog=TYPES_NOTE)
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("type_name", metavar="TYPE")
@quantizing_options
@click.option("--allow-requantize", is_flag=True, help="Accept a file that is quantized already; it loses more.")
@click.option(
    "--calibrate",
    "calibration_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=f"Round every matrix on the inputs it sees in this text; {OURS}: the one that ships. Slow, and the closest.",
)
@click.option(
    "--calibrate-ctx", type=click.IntRange(8), default=512, show_default=True, help="Tokens in a chunk of that text."
)
@click.option(
    "--calibrate-chunks",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Chunks to use at most; their states take room on the disk of OUT meanwhile.",
)
@threads_option
def quantize(
    source: Path,
    out: Path,
    type_name: str,
    imatrix_file: Path | None,
    tensor_types: tuple[str, ...],
    dry_run: bool,
    allow_requantize: bool,
    calibration_file: Path | None,
    calibrate_ctx: int,
    calibrate_chunks: int,
    threads: int | None,
) -> None:
    """Quantize a GGUF file.

    IN is a file of floats, such as `localcoder convert --type bf16` writes; TYPE is what its matrices become.
    """
    from localcoder.backends.select import open_backend
    from localcoder.convert.quantizer import quantize_file
    from localcoder.measure.calibrated import quantize_calibrated

    choice = make_choice(type_name, imatrix_file, tensor_types)
    chunks = None
    if calibration_file and not dry_run:
        chunks = _calibration_chunks(source, calibration_file, calibrate_ctx)[:calibrate_chunks]
    backend = open_backend(threads=threads)
    try:
        window = 30.0 if chunks is None else 1800.0  # calibration writes one matrix at a time, minutes apart
        with byte_progress(f"{out.name} ({choice.recipe.name})", window=window) as progress:
            if chunks is not None:
                outcome = quantize_calibrated(source, out, choice, backend, chunks, progress=progress)
            else:
                outcome = quantize_file(
                    source, out, choice, requantize=backend.requantize, allow_requantize=allow_requantize,
                    progress=progress, dry_run=dry_run,
                )  # fmt: skip
    finally:
        backend.close()
    if dry_run:
        show_plan(outcome)
    else:
        click.echo(f"wrote {out}: {outcome.n_bytes / 2**20:,.1f} MiB", err=True)


def _calibration_chunks(model: Path, text_file: Path, n_ctx: int) -> NDArray[np.int32]:
    """The text in the tokens of a model, int32 [n_chunks, n_ctx]."""
    from localcoder.files.gguf_reader import GGUFFile
    from localcoder.measure.calibration import calibration_text
    from localcoder.measure.chunks import cut_chunks
    from localcoder.tokenizer.tokenizer import Tokenizer

    is_ours = str(text_file) == OURS
    text = calibration_text() if is_ours else read_text(text_file)
    with GGUFFile.open(model) as file:
        tokenizer = Tokenizer.from_gguf(file)
    tokens = tokenizer.tokenize(text, parse_special=is_ours)
    return cut_chunks(tokens, n_ctx, tokenizer.bos_id if tokenizer.add_bos else None)
