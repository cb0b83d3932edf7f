"""What it is worth to decoding that files are written in pieces of huge pages (localcoder/files/huge_pages.py).

    python tools/measure_file_pages.py FILE.gguf [--rounds 20] [--threads 2]

FILE is copied twice into a folder beside it, in writes of 100 KB, which begin anywhere in a page, and by PieceWriter.
Both copies decode in turn, in one process, from the page cache. Prints the median time of a token of either, and their
ratio.
"""

from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from localcoder.backends.select import open_backend
from localcoder.files.gguf_reader import GGUFFile
from localcoder.files.huge_pages import PieceWriter
from localcoder.measure.bench import sequence_of
from localcoder.model.engine import Chunk, Engine

STEP = 100_000
TOKENS = 4  # of a turn


def copied(source: Path, target: Path, in_pieces: bool) -> Path:
    """A copy of the file, written in one way or the other."""
    with source.open("rb") as data, io.FileIO(target, "wb") as file:
        writer = PieceWriter(file)
        while step := data.read(STEP):
            (writer.write if in_pieces else file.write)(step)
        writer.flush()
    return target


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--rounds", default=20, show_default=True)
@click.option("--threads", type=int, help="Threads to compute with.")
def main(file: Path, rounds: int, threads: int | None) -> None:
    """Compare decoding from a file as it used to be written with one in pieces."""
    seconds = np.zeros((2, rounds))
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        engines = []
        for in_pieces in (False, True):
            copy = copied(file, Path(folder) / f"{in_pieces}.gguf", in_pieces)
            engines.append(Engine(GGUFFile.open(copy), open_backend("auto", threads), n_ctx=1024))
        sequences = [sequence_of(engine, 1) for engine in engines]
        token = np.array([1], np.int32)
        for i in range(rounds):
            for j, (engine, sequence) in enumerate(zip(engines, sequences, strict=True)):
                start = time.perf_counter()
                for _ in range(TOKENS):
                    engine.evaluate([Chunk(sequence, token)])
                seconds[j, i] = (time.perf_counter() - start) / TOKENS
    before, after = np.median(seconds, axis=1)
    ratio = np.percentile(seconds[0] / seconds[1], [50, 25, 75])
    print(f"{file.name}: {before * 1e3:.1f} ms a token, in pieces {after * 1e3:.1f} ms: {ratio[0]:.2f} times the speed")
    print(f"(quartiles {ratio[1]:.2f} and {ratio[2]:.2f})")


if __name__ == "__main__":
    main()
