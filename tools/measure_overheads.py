"""What localcoder adds to the model's own work: importing, starting, Python around each token, sampling; and how far
the numba backend is from the C core.

    python tools/measure_overheads.py MODEL.gguf [--rounds 7] [--threads 2] [--skip-numba] [--out RESULT.json]

Medians of rounds that take turns. Needs a machine that does nothing else. The model's file is read once before, so that
it is in memory. Use a file of random weights of the 1.3B shape (tools/make_checkpoint.py).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

PROMPT = "def quicksort(items):\n    # sorts in place\n" * 8
SAMPLERS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature, top-k 40, top-p": {"temperature": 0.8},
    "temperature, top-p, no top-k": {"temperature": 0.8, "top_k": 0},
    "min-p": {"temperature": 0.8, "top_k": 0, "top_p": 1.0, "min_p": 0.05},
    "all penalties": {"temperature": 0.8, "repeat_penalty": 1.1, "frequency_penalty": 0.1, "dry_multiplier": 0.8},
}
# As on a user's machine: compiled modules are kept from the first start on.
ENV = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def seconds_of(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def process_seconds(*arguments: str) -> float:
    return seconds_of(lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=ENV))


def import_seconds(rounds: int) -> float:
    """Of `import localcoder`, beyond starting Python."""
    process_seconds("-c", "import localcoder")
    pairs = [(process_seconds("-c", "import localcoder"), process_seconds("-c", "pass")) for _ in range(rounds)]
    return statistics.median(ours - plain for ours, plain in pairs)


def first_token(model: Path, rounds: int, threads: int) -> dict[str, float]:
    """Seconds of `localcoder run` for one token, of the same prompt's prefill alone, and their difference."""
    from localcoder import Coder
    from localcoder.model.engine import Chunk

    command = ("-m", "localcoder", "run", str(model), PROMPT, "--max-tokens", "1", "--threads", str(threads))
    whole, alone = [], []
    process_seconds(*command)
    with Coder(model, threads=threads) as coder:
        ids = np.array(coder.tokenize(PROMPT), np.int32)
        for _ in range(rounds):
            sequence = coder.engine.new_sequence()
            alone.append(seconds_of(partial(coder.engine.evaluate, [Chunk(sequence, ids)])))
            sequence.close()
            whole.append(process_seconds(*command))
    return {
        "tokens": len(ids),
        "command": statistics.median(whole),
        "prefill": statistics.median(alone),
        "added": statistics.median(a - b for a, b in zip(whole, alone)),
    }


class TimedLibrary:
    """The C library, with a clock on the functions that a step calls: the one that runs it, and the one that finds the
    highest logits."""

    def __init__(self, library: Any) -> None:
        self.seconds = 0.0
        self.lc_program_run = self._timed(library.lc_program_run)
        self.lc_highest = self._timed(library.lc_highest)

    def _timed(self, function: Callable[..., int]) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            start = time.perf_counter()
            status = function(*arguments)
            self.seconds += time.perf_counter() - start
            return status

        return call


def python_share(model: Path, threads: int) -> float:
    """The fraction of a long generation's time that is not spent in the C core: Python, sampling, text."""
    from localcoder import Coder

    with Coder(model, threads=threads) as coder:
        executable = coder.engine._executable
        clock = executable._lib = TimedLibrary(executable._lib)  # type: ignore[attr-defined]
        generation = iter(coder.start("def f(", max_tokens=128))
        next(generation)
        clock.seconds = 0.0
        whole = seconds_of(lambda: "".join(generation))
        return 1 - clock.seconds / whole


def sampling_seconds(rounds: int) -> dict[str, float]:
    """Of choosing one of 32,256 tokens."""
    from localcoder.session.options import SamplingOptions
    from localcoder.session.sampler import Sampler

    logits = (np.random.default_rng(0).standard_normal((64, 32256)) * 3).astype(np.float32)
    history = list(np.random.default_rng(1).integers(0, 500, 2000))
    result = {}
    for name, options in SAMPLERS.items():
        sampler = Sampler(SamplingOptions(seed=1, **options))
        times = [seconds_of(partial(sampler.sample, row, history)) for _ in range(rounds) for row in logits]
        result[name] = statistics.median(times)
    return result


def numba_ratios(model: Path, rounds: int, threads: int) -> dict[str, float]:
    """Speed of the numba backend over that of the C core: a prefill of 256 tokens, and decoding."""
    from localcoder.backends.c import CBackend
    from localcoder.backends.numba import NumbaBackend
    from localcoder.files.gguf_reader import GGUFFile
    from localcoder.measure.bench import bench
    from localcoder.model.engine import Engine

    file = GGUFFile.open(model)
    engines = {b.name: Engine(file, b, n_ctx=512) for b in (CBackend(threads), NumbaBackend(threads))}
    speeds: dict[tuple[str, str], list[float]] = {}
    for _ in range(max(2, rounds // 2)):
        for name, engine in engines.items():
            for result in bench(engine, prefills=[256], n_decode=16, repetitions=1):
                speeds.setdefault((name, result.test), []).append(result.tokens_per_second)
    tests = sorted({test for _, test in speeds})
    return {t: statistics.median(n / c for n, c in zip(speeds["numba", t], speeds["c", t])) for t in tests}


@click.command()
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--rounds", default=7)
@click.option("--threads", default=2)
@click.option("--skip-numba", is_flag=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The results, .json.")
def main(model: Path, rounds: int, threads: int, skip_numba: bool, out: Path | None) -> None:
    """Measure what localcoder adds to the model's own work."""
    from localcoder.measure.machine import this_machine

    model.read_bytes()
    report: dict[str, Any] = {"machine": this_machine().cpu, "model": model.name, "threads": threads}
    report["import_s"] = import_seconds(rounds)
    print(f"import localcoder: {report['import_s']:.3f} s", flush=True)
    report["first_token"] = start = first_token(model, rounds, threads)
    print(
        f"localcoder run, first token: {start['added']:.2f} s beyond the prefill ({start['prefill']:.2f} s)",
        flush=True,
    )
    report["outside_c"] = python_share(model, threads)
    print(f"decoding, outside the C core: {100 * report['outside_c']:.2f}%", flush=True)
    report["sampling_s"] = sampling_seconds(rounds)
    for name, seconds in report["sampling_s"].items():
        print(f"sampling, {name}: {1e3 * seconds:.3f} ms", flush=True)
    if not skip_numba:
        report["numba"] = numba_ratios(model, rounds, threads)
        for test, ratio in report["numba"].items():
            print(f"numba / C, {test}: {ratio:.2f}", flush=True)
    if out is not None:
        out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
