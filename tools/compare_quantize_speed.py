"""How fast `localcoder quantize` is, beside llama.cpp's quantizer on the same file.

    python tools/compare_quantize_speed.py [FILE.gguf] [--types q4_0,q4_k_m,q6_k] [--rounds 3] [--threads 2]

Without a file, random weights of the 1.3B shape in f16 are made first. The two take turns, each in a process of its
own; the file is read once before, so that it is in memory for both. Ours is timed as the user sees it, from the start
of the program to its end; theirs is the call of `llama_model_quantize` alone. Needs llama-cpp-python, and a machine
that does nothing else: the spread of the rounds tells.
"""

from __future__ import annotations

import ctypes
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

SHAPE = "1.3b"
TYPES = "q4_0,q4_k_m,q6_k"


def run_theirs(source: Path, target: Path, file_type: int, threads: int) -> float:
    """Seconds that llama.cpp takes; run in a process of its own."""
    import llama_cpp

    @llama_cpp.llama_log_callback
    def quiet(*_: object) -> None: ...

    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.nthread = file_type, threads
    start = time.perf_counter()
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options))
    if status != 0:
        raise SystemExit(f"llama.cpp's quantizer failed with status {status}")
    return time.perf_counter() - start


def time_theirs(source: Path, target: Path, type_name: str, threads: int) -> float:
    from localcoder.convert.recipes import recipe_by_name

    file_type = recipe_by_name(type_name).file_type
    command = [sys.executable, __file__, "--theirs", str(file_type), str(source), str(target), "--threads", threads]
    return float(subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout)


def time_ours(source: Path, target: Path, type_name: str, threads: int) -> float:
    command = [sys.executable, "-m", "localcoder", "quantize", source, target, type_name, "--threads", threads]
    start = time.perf_counter()
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return time.perf_counter() - start


def make_source(folder: Path) -> Path:
    """Random weights of the 1.3B shape."""
    path = folder / f"{SHAPE}-f16.gguf"
    tool = Path(__file__).with_name("make_checkpoint.py")
    subprocess.run([sys.executable, tool, path, "--shape", SHAPE, "--type", "f16"], check=True, capture_output=True)
    return path


def compare(source: Path, folder: Path, types: list[str], rounds: int, threads: int) -> None:
    n_bytes = 0
    with source.open("rb") as file:
        while block := file.read(1 << 24):
            n_bytes += len(block)
    click.echo(f"{source.name}, {n_bytes / 1e6:,.0f} MB, {threads} threads, {rounds} rounds: seconds")
    click.echo(f"{'type':8}{'ours':>8}{'llama.cpp':>11}{'MB/s':>8}{'MB/s':>8}{'times as fast':>15}{'range':>14}")
    for type_name in types:
        ours, theirs = [], []
        for _ in range(rounds):
            for times, run in ((ours, time_ours), (theirs, time_theirs)):
                target = folder / f"{run.__name__}-{type_name}.gguf"
                times.append(run(source, target, type_name, threads))
                target.unlink()
        ratios = [t / o for o, t in zip(ours, theirs)]
        mine, other = statistics.median(ours), statistics.median(theirs)
        spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
        click.echo(
            f"{type_name:8}{mine:8.2f}{other:11.2f}{n_bytes / mine / 1e6:8.0f}{n_bytes / other / 1e6:8.0f}"
            f"{statistics.median(ratios):15.2f}{spread:>14}"
        )


@click.command(help=__doc__)
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--types", default=TYPES, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Where files are written.  [default: a temporary one]")
@click.option("--theirs", type=int, hidden=True)
def main(
    files: tuple[Path, ...], types: str, rounds: int, threads: int, folder: Path | None, theirs: int | None
) -> None:
    if theirs is not None:
        click.echo(run_theirs(*files, theirs, threads))
        return
    with tempfile.TemporaryDirectory(dir=folder) as name:
        compare(files[0] if files else make_source(Path(name)), Path(name), types.split(","), rounds, threads)


if __name__ == "__main__":
    main()
