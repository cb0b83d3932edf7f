"""Run by test_numba_cuda.py with NUMBA_ENABLE_CUDASIM=1: numba's kernels for cards, in its simulator, against the
reference."""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from random_blocks import random_tensor
from tiny_model import write_tiny_model

from localcoder.backends.numba_cuda import NumbaCudaBackend
from localcoder.backends.numba_cuda.formats import READERS
from localcoder.backends.program import KVShape, Recorder, RopeTable, Step
from localcoder.backends.reference import ReferenceBackend
from localcoder.backends.select import open_backend
from localcoder.files.gguf_reader import GGUFFile
from localcoder.model.engine import Chunk, Engine
from localcoder.quants import ALL, by_name

warnings.simplefilter("error")
TOLERANCE = 1e-3
BACKENDS = (ReferenceBackend(), NumbaCudaBackend())


def check(name: str, expected: np.ndarray, result: np.ndarray, tolerance: float) -> None:
    error = np.abs(result - expected).max() / np.abs(expected).max()
    if not error <= tolerance:
        sys.exit(f"{name}: off by {error}")
    print(name)


def products(name: str) -> None:
    """A matrix and rows of it as an embedding; 9 tokens, so that one is left over."""
    weight = random_tensor(by_name(name), 3, 512 if by_name(name).block_elems > 1 else 70)
    n, n_in = 9, weight.shape[1]
    x = np.random.default_rng(1).standard_normal((n, n_in)).astype(np.float32)
    zeros, count = np.zeros(n, np.int32), np.arange(n, dtype=np.int32)
    step = Step(count % 3, count, zeros, np.zeros((1, 1), np.int32), zeros[:0], (x,))
    table = np.zeros((64, 1), np.float32)
    results = []
    for backend in BACKENDS:
        kv = backend.new_kv_store(KVShape(1, 1, 2, 64), 1)
        for record in (lambda ops: ops.linear(ops.input(n_in), weight), lambda ops: ops.embed(weight)):
            ops = Recorder()
            executable = backend.compile(ops.finish(record(ops), kv.shape, RopeTable(table, table)), kv, n)
            results.append(executable.run(step))
            executable.close()
    tolerance = 1e-6 if name in READERS else TOLERANCE  # the others are rounded to halves
    check(name, results[0], results[2], tolerance)
    check(name, results[1], results[3], tolerance)


def course(engine: Engine) -> np.ndarray:
    """Two sequences, a fork, and a page that was read and written."""
    first, second = engine.new_sequence(), engine.new_sequence()
    engine.evaluate([Chunk(first, np.array([3, 4, 5], np.int32), 0), Chunk(second, np.array([9, 8], np.int32), 0)])
    fork, copy = first.fork(), engine.new_sequence()
    engine.write_pages(copy, first.n_past, [page.copy() for page in engine.read_pages(first)])
    sequences = enumerate((fork, copy, first, second))
    return engine.evaluate([Chunk(s, np.array([i], np.int32), int(s is not second)) for i, s in sequences])


def attention() -> None:
    """Over pages in disorder, more positions than a block has threads, grouped heads."""
    ops = Recorder()
    query, keys, values = ops.input(2 * 6), ops.input(6), ops.input(6)
    ops.write_kv(1, keys, values)
    table, count = np.zeros((64, 3), np.float32), np.arange(19, dtype=np.int32)
    program = ops.finish(ops.attend(1, query, 2), KVShape(2, 1, 6, 4), RopeTable(table, table))
    x = [np.random.default_rng(i).standard_normal((19, w)).astype(np.float32) for i, w in enumerate((12, 6, 6))]
    pages = np.array([[4, 0, 3, 1, 2]], np.int32)
    results = []
    for backend in BACKENDS:
        executable = backend.compile(program, backend.new_kv_store(program.kv, 5), 17)
        for part in (slice(0, 17), slice(17, 19)):
            where = count[part]
            inputs = tuple(np.ascontiguousarray(a[part]) for a in x)
            results.append(executable.run(Step(0 * where, where, 0 * where, pages, where[:0], inputs)))
    check("attention", np.concatenate(results[:2]), np.concatenate(results[2:]), 1e-5)


for qtype in ALL:
    products(qtype.name)
attention()
with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    small = {"n_embd": 32, "n_ff": 32, "n_head": 2, "n_head_kv": 1, "n_layer": 1, "n_vocab": 272}
    with GGUFFile.open(write_tiny_model(Path(folder) / "tiny.gguf", type_name="f16", **small)) as file:
        check("model", *(course(Engine(file, b, n_ctx=64, n_sequences=4)) for b in BACKENDS), TOLERANCE)
backend = open_backend("cuda")
print(backend.name)
