"""What the machine can do at most, and how much work a model's token is: every speed is a fraction of a limit.

Decode is bounded by reading memory: all weights but the embedding, of which it takes one row, and the keys and values
of the past. Prefill is bounded by multiply-adds: of 8-bit integers where activations are rounded to them, else of
float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from localcoder.files.gguf_reader import GGUFFile
from localcoder.quants import by_name
from localcoder.quants.spec import Bytes, QuantTensor

if TYPE_CHECKING:
    from localcoder.backends.c import CBackend
    from localcoder.model.engine import Engine

READ_BYTES = 1 << 28  # far more than caches hold
ROUNDS = 3  # the best of so many counts: other programs only make them worse


@dataclass(frozen=True)
class Limits:
    """What all threads reach together.

    Attributes:
        read: streaming reads, GB/s.
        int8, bf16, f32: multiply-adds on registers, 10^9 operations a second (a multiply and an add are two); None
            where the instruction set in use has none, or nothing here can measure it.
    """

    read: float
    int8: float | None
    bf16: float | None
    f32: float

    def best_of(self, other: Limits) -> Limits:
        """The larger of each, for a machine that was disturbed while one was measured."""

        def larger(a: float | None, b: float | None) -> float | None:
            return max((x for x in (a, b) if x is not None), default=None)

        return Limits(
            max(self.read, other.read),
            larger(self.int8, other.int8),
            larger(self.bf16, other.bf16),
            max(self.f32, other.f32),
        )


def measure_limits(threads: int) -> Limits:
    """Measures for about a second; with the C core, else (reading and float32 only) with numpy."""
    from localcoder.backends.c import CBackend, availability

    memory = np.ones(READ_BYTES, np.uint8)
    if availability() is not None:
        return Limits(_numpy_read(memory, threads), None, None, _numpy_f32())
    backend = CBackend(threads)
    try:
        read = READ_BYTES / _best_seconds(lambda: backend.read_memory(memory)) / 1e9
        int8, bf16, f32 = (_peak(backend, kind) for kind in ("int8", "bf16", "f32"))
        return Limits(read, int8, bf16, f32 or _numpy_f32())
    finally:
        backend.close()


def _best_seconds(run: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _peak(backend: CBackend, kind: str) -> float | None:
    rounds = 2_000_000
    ops = backend.run_peak(kind, rounds)
    return ops / _best_seconds(lambda: backend.run_peak(kind, rounds)) / 1e9 if ops else None


def _numpy_read(memory: Bytes, threads: int) -> float:
    parts = np.array_split(memory.view(np.uint64), threads)
    with ThreadPoolExecutor(threads) as pool:
        seconds = _best_seconds(lambda: list(pool.map(np.bitwise_xor.reduce, parts)))
    return memory.nbytes / seconds / 1e9


def _numpy_f32() -> float:
    a = np.ones((1024, 1024), np.float32)
    return 2 * 1024**3 / _best_seconds(lambda: a @ a) / 1e9


def decode_bytes(engine: Engine, depth: int) -> int:
    """Bytes that one token reads after `depth` others."""
    hp = engine.hyperparameters
    row = by_name(engine.kv_type).row_bytes(hp.head_dim)
    past = 2 * hp.n_layer * hp.n_head_kv * row * (depth + 1)
    return sum(tensor.nbytes for tensor in _matrices(engine.file, with_output=True)) + past


def prefill_ops(engine: Engine) -> int:
    """Operations of one prompt token's matrix products; the logits, wanted for the last one only, do not count."""
    return 2 * sum(int(np.prod(tensor.shape)) for tensor in _matrices(engine.file, with_output=False))


def prefill_kind(engine: Engine) -> str:
    """Which of the peaks bounds the prefill: that of most of the file's products."""
    quantized = engine.backend.prefill_peak
    sizes = {quantized: 0, "f32": 0}
    for tensor in _matrices(engine.file, with_output=False):
        sizes[quantized if tensor.qtype.activation == "q8" else "f32"] += int(np.prod(tensor.shape))
    return max(sizes, key=lambda kind: sizes[kind])


def _matrices(file: GGUFFile, *, with_output: bool) -> list[QuantTensor]:
    output = "output.weight" if "output.weight" in file.tensors else "token_embd.weight"
    left_out = {"token_embd.weight", "output.weight"} - ({output} if with_output else set())
    return [t for name, t in file.tensors.items() if len(t.shape) == 2 and name not in left_out]
