"""`localcoder quantize`: a GGUF file becomes a smaller one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from localcoder.cli.common import MODEL_FILE, byte_progress, read_text, step_progress, threads_option
from localcoder.cli.quantizing import TYPES_NOTE, Wanted, make_choice, quantizing_options, show_plan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from localcoder.backends.base import Backend
    from localcoder.convert.choice import Choice

OURS = "ours"


@click.command(epilog=TYPES_NOTE)
@click.argument("source", metavar="IN", type=MODEL_FILE)
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("type_name", metavar="[TYPE]", required=False)
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
    type_name: str | None,
    wanted: Wanted,
    allow_requantize: bool,
    calibration_file: Path | None,
    calibrate_ctx: int,
    calibrate_chunks: int,
    threads: int | None,
) -> None:
    """Quantize a GGUF file.

    IN is a file of floats, such as `localcoder convert --type bf16` writes; TYPE is what its matrices become, unless
    --target-size, --target-bpw or --fit chooses.
    """
    from localcoder.backends.select import open_backend
    from localcoder.convert.quantizer import quantize_file
    from localcoder.measure.calibrated import quantize_calibrated

    choice = make_choice(type_name, wanted, source)
    chunks = None
    if calibration_file:
        chunks = _calibration_chunks(source, calibration_file, calibrate_ctx)[:calibrate_chunks]
    backend = open_backend("cpu", threads)
    try:
        if chunks is not None and choice.budget:
            choice = _with_sensitivity(choice, source, backend, chunks)
        window = 30.0 if chunks is None else 1800.0  # calibration writes one matrix at a time, minutes apart
        with byte_progress(f"{out.name} ({choice.name})", window=window) as progress:
            if chunks is not None and not wanted.dry_run:
                outcome = quantize_calibrated(source, out, choice, backend, chunks, progress=progress)
            else:
                outcome = quantize_file(
                    source, out, choice, requantize=backend.requantize, allow_requantize=allow_requantize,
                    progress=progress, dry_run=wanted.dry_run,
                )  # fmt: skip
    finally:
        backend.close()
    if wanted.dry_run:
        show_plan(outcome)
    else:
        click.echo(f"wrote {out}: {outcome.n_bytes / 2**20:,.1f} MiB", err=True)


def _with_sensitivity(choice: Choice, source: Path, backend: Backend, chunks: NDArray[np.int32]) -> Choice:
    """`choice` with a budget that knows what noise does to this very model."""
    from localcoder.files.gguf_reader import GGUFFile
    from localcoder.measure.sensitivity import measure_sensitivity

    assert choice.budget is not None
    with step_progress("sensitivity") as progress, GGUFFile.open(source) as file:
        sensitivity = measure_sensitivity(file, backend, chunks, lambda done, total: progress(done, total, ""))
    return replace(choice, budget=replace(choice.budget, sensitivity=sensitivity))


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
