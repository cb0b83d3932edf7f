"""Speed: prefill (`pp`) and decode (`tg`) in tokens per second, measured apart.

Random tokens; nothing but the engine is timed, so neither sampling nor text. Each test is run once more than asked and
the first, which warms caches and packs weights, is dropped.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localcoder.errors import OptionError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.engine import Chunk, Engine


@dataclass(frozen=True)
class BenchResult:
    """One test.

    Attributes:
        test: `pp512`: prefill of 512 tokens; `tg64`: 64 tokens one by one from an empty context.
        tokens_per_second: median of the samples.
        samples: tokens per second of each repetition.
    """

    test: str
    tokens_per_second: float
    samples: tuple[float, ...]


def bench(engine: Engine, *, n_prefill: int, n_decode: int, repetitions: int) -> Iterator[BenchResult]:
    """Yields a result for each test as it is done; a length of 0 leaves its test out.

    Raises:
        OptionError: both lengths 0, one beyond the context, or no repetitions.
    """
    for name, n in (("p", n_prefill), ("n", n_decode)):
        if not 0 <= n <= engine.n_ctx:
            raise OptionError(f"{name} is {n}; expected 0 to {engine.n_ctx}")
    if not n_prefill and not n_decode:
        raise OptionError("p and n are both 0: nothing to measure")
    if repetitions < 1:
        raise OptionError(f"{repetitions} repetitions; expected at least 1")
    return _bench(engine, n_prefill, n_decode, repetitions)


def _bench(engine: Engine, n_prefill: int, n_decode: int, repetitions: int) -> Iterator[BenchResult]:
    tests: list[tuple[str, int, Callable[[Engine, NDArray[np.int32]], float]]] = [
        (f"pp{n_prefill}", n_prefill, _seconds_of_prefill),
        (f"tg{n_decode}", n_decode, _seconds_of_decode),
    ]
    random = np.random.default_rng(0)
    for name, n, seconds_of in tests:
        if n:
            runs = random.integers(0, engine.n_vocab, (repetitions + 1, n), np.int32)
            samples = tuple(n / seconds_of(engine, tokens) for tokens in runs)[1:]
            yield BenchResult(name, statistics.median(samples), samples)


def _seconds_of_prefill(engine: Engine, tokens: NDArray[np.int32]) -> float:
    sequence = engine.new_sequence()
    try:
        start = time.perf_counter()
        engine.evaluate([Chunk(sequence, tokens)])
        return time.perf_counter() - start
    finally:
        sequence.close()


def _seconds_of_decode(engine: Engine, tokens: NDArray[np.int32]) -> float:
    sequence = engine.new_sequence()
    try:
        start = time.perf_counter()
        for at in range(len(tokens)):
            engine.evaluate([Chunk(sequence, tokens[at : at + 1])])
        return time.perf_counter() - start
    finally:
        sequence.close()


def main_type(file: GGUFFile) -> str:
    """The block format that holds most of a file's parameters."""
    sizes: Counter[str] = Counter()
    for tensor in file.tensors.values():
        sizes[tensor.qtype.name] += int(np.prod(tensor.shape))
    return sizes.most_common(1)[0][0]
