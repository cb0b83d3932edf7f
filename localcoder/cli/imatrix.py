"""`localcoder imatrix`: what a text says about the importance of each weight."""

from __future__ import annotations

from pathlib import Path

import click

from localcoder.cli.common import (
    MODEL_FILE,
    device_option,
    read_text,
    step_progress,
    threads_option,
)
from localcoder.cli.messages import show_note
from localcoder.errors import OptionError


@click.command()
@click.argument("model", metavar="MODEL", type=MODEL_FILE)
@click.option("--file", "text_file", type=click.Path(path_type=Path), help="The text, UTF-8.  [default: ours, of code]")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The importance matrix to write.")
@click.option("--n-ctx", default=512, show_default=True, type=click.IntRange(8), help="Tokens in a chunk.")
@click.option("--chunks", type=click.IntRange(1), help="Use at most this many chunks of the text.")
@click.option("--resume", is_flag=True, help="Go on where an interrupted run stopped.")
@click.option("--parse-special", is_flag=True, help="Special tokens spelled in the text become those tokens.")
@threads_option
@device_option
def imatrix(
    model: Path,
    text_file: Path | None,
    output: Path,
    n_ctx: int,
    chunks: int | None,
    resume: bool,
    parse_special: bool,
    threads: int | None,
    device: str,
) -> None:
    """Collect an importance matrix for the quantizers by running MODEL over a text.

    The file is in the GGUF form that llama.cpp reads and writes, saved every few chunks.
    """
    from localcoder.backends.select import open_backend
    from localcoder.files.gguf_reader import GGUFFile
    from localcoder.files.imatrix import ImportanceMatrix
    from localcoder.measure.calibration import calibration_text
    from localcoder.measure.chunks import cut_chunks
    from localcoder.measure.imatrix import collect
    from localcoder.tokenizer.tokenizer import Tokenizer

    text = read_text(text_file) if text_file else calibration_text()
    dataset = text_file.name if text_file else "localcoder"
    matrix = ImportanceMatrix(n_ctx, datasets=[dataset])
    if resume and output.exists():
        matrix = ImportanceMatrix.open(output)
        if matrix.chunk_size != n_ctx or matrix.datasets != [dataset]:
            found = f"{matrix.datasets} in chunks of {matrix.chunk_size}"
            raise OptionError(f"{output}: holds {found}; it cannot be resumed with {dataset} in chunks of {n_ctx}")
    with GGUFFile.open(model) as file:
        tokenizer = Tokenizer.from_gguf(file)
        tokens = tokenizer.tokenize(text, parse_special=parse_special or text_file is None)
        ids = cut_chunks(tokens, n_ctx, tokenizer.bos_id if tokenizer.add_bos else None)[:chunks]
        backend = open_backend(device, threads)
        with step_progress("imatrix") as progress:
            for n_done in collect(file, backend, ids, matrix):
                matrix.save(output)
                progress(n_done, len(ids), "chunks")
        backend.close()
    show_note(f"{output}: {len(matrix.sums)} matrices observed over {matrix.n_chunks} chunks of {n_ctx} tokens")
