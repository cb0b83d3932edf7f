"""Speed: prefill (`pp`) and decode (`tg`) in tokens per second, measured apart.

Random tokens; nothing but the engine is timed, so neither sampling nor text. Each test is run once more than asked and
the first, which warms caches and packs weights, is dropped.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localcoder.errors import OptionError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.engine import PAGE_SIZE, Chunk, Engine
from localcoder.model.kv_cache import SequencePages


@dataclass(frozen=True)
class BenchResult:
    """One test.

    Attributes:
        test: `pp512`: prefill of 512 tokens; `tg64`: 64 tokens one by one from an empty context; `tg64@2048`: after
            2048 others.
        tokens_per_second: median of the samples.
        samples: tokens per second of each repetition.
        depth: tokens before those that are timed.
        is_prefill: whether the tokens were given at once.
    """

    test: str
    tokens_per_second: float
    samples: tuple[float, ...]
    depth: int
    is_prefill: bool


def bench(
    engine: Engine, *, prefills: Sequence[int], n_decode: int, depths: Sequence[int] = (0,), repetitions: int
) -> Iterator[BenchResult]:
    """Yields a result for each test as it is done: every length of `prefills` but 0, and unless `n_decode` is 0 that
    many tokens at each of `depths`.

    Raises:
        OptionError: nothing to do, a length beyond the context, or no repetitions.
    """
    for n in prefills:
        if not 0 <= n <= engine.n_ctx:
            raise OptionError(f"p is {n}; expected 0 to {engine.n_ctx}")
    for depth in depths:
        if depth < 0 or not 0 <= n_decode <= engine.n_ctx - depth:
            raise OptionError(f"n is {n_decode} at depth {depth}; expected together 0 to {engine.n_ctx}")
    if not any(prefills) and not n_decode:
        raise OptionError("p and n are both 0: nothing to measure")
    if repetitions < 1:
        raise OptionError(f"{repetitions} repetitions; expected at least 1")
    return _bench(engine, prefills, n_decode, depths, repetitions)


def _bench(
    engine: Engine, prefills: Sequence[int], n_decode: int, depths: Sequence[int], repetitions: int
) -> Iterator[BenchResult]:
    random = np.random.default_rng(0)

    def run(
        name: str, n: int, depth: int, seconds_of: Callable[[Engine, NDArray[np.int32], int], float]
    ) -> BenchResult:
        runs = random.integers(0, engine.n_vocab, (repetitions + 1, n), np.int32)
        samples = tuple(n / seconds_of(engine, tokens, depth) for tokens in runs)[1:]
        return BenchResult(name, statistics.median(samples), samples, depth, seconds_of is _seconds_of_prefill)

    for n in filter(None, prefills):
        yield run(f"pp{n}", n, 0, _seconds_of_prefill)
    for depth in depths if n_decode else ():
        yield run(f"tg{n_decode}@{depth}" if depth else f"tg{n_decode}", n_decode, depth, _seconds_of_decode)


def sequence_of(engine: Engine, depth: int) -> SequencePages:
    """A sequence with `depth` tokens in its past: one page of them is computed, the others are its copies."""
    sequence = engine.new_sequence()
    if depth:
        start = np.arange(min(PAGE_SIZE, depth), dtype=np.int32) % engine.n_vocab
        engine.evaluate([Chunk(sequence, start, 0)])
        if depth > PAGE_SIZE:
            sequence.repeat(depth)
    return sequence


def _seconds_of_prefill(engine: Engine, tokens: NDArray[np.int32], depth: int) -> float:
    sequence = sequence_of(engine, depth)
    try:
        start = time.perf_counter()
        engine.evaluate([Chunk(sequence, tokens)])
        return time.perf_counter() - start
    finally:
        sequence.close()


def _seconds_of_decode(engine: Engine, tokens: NDArray[np.int32], depth: int) -> float:
    sequence = sequence_of(engine, depth)
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
