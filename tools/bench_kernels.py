"""How fast single kernels are, and what fraction of the machine's limit that is.

    python tools/bench_kernels.py [--types q4_0,q6_k] [--threads 2] [--parts matvec,matmul,attention] [--json OUT.json]

A program of nothing but products with one format's matrices is run: with 1 to 8 tokens, which read the weights once, so
that GB/s count; and with 512, where operations count. The matrices are larger than the caches. Attention is timed over
pasts of two lengths in every type of KV cache, and counted in GB/s of keys and values for one token. The limits are
measured in the same run; fractions say little on a machine that does something else meanwhile.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from localcoder.backends.base import Backend
from localcoder.backends.c import CBackend
from localcoder.backends.program import KVShape, Program, Recorder, RopeTable, Step
from localcoder.backends.threads import thread_count
from localcoder.measure.limits import Limits, measure_limits
from localcoder.measure.machine import this_machine
from localcoder.model.kv_types import KV_TYPES
from localcoder.quants import by_name
from localcoder.quants.spec import QuantTensor

TYPES = "q4_0,q4_1,q5_0,q5_1,q8_0,q2_k,q3_k,q4_k,q5_k,q6_k,iq4_nl,iq4_xs,f16,bf16,f32"
N_IN, N_OUT = 2048, 5504  # gate and up of the 1.3B shape
WEIGHT_BYTES = 160 << 20  # of one format's matrices: far more than caches hold
UNIQUE_ROWS = 64
FEW = range(1, 9)
MANY = 512
HEADS, HEAD_DIM, PAGE = 16, 128, 64
DEPTHS = (2048, 8192)


@dataclass(frozen=True)
class Result:
    """One kernel: `rate` in `unit`, what fraction of the limit `bound` that is, and its time in that of one token."""

    part: str
    name: str
    tokens: int
    rate: float
    unit: str
    bound: str
    fraction: float | None
    of_one: float | None = None


def best_seconds(run: Callable[[], object], seconds: float) -> float:
    """The shortest of as many runs as fit in about so many seconds, at least three."""
    times = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def no_rope(n_ctx: int) -> RopeTable:
    table = np.zeros((n_ctx, HEAD_DIM // 2), np.float32)
    return RopeTable(table, table)


def step_of(n_tokens: int, start: int = 0, inputs: tuple[NDArray[np.float32], ...] = ()) -> Step:
    count = np.arange(n_tokens, dtype=np.int32)
    pages = np.arange(-(-(start + n_tokens) // PAGE), dtype=np.int32)[None]
    return Step(count, start + count, np.zeros(n_tokens, np.int32), pages, count[-1:], inputs)


def products(backend: Backend, type_name: str) -> tuple[Program, int]:
    """A program of matrix products, and the bytes that they read."""
    qtype = by_name(type_name)
    random = np.random.default_rng(0)
    rows = backend.quantize_best(qtype, random.normal(0, 0.02, (UNIQUE_ROWS, N_IN)).astype(np.float32))
    data = np.tile(rows, (N_OUT // UNIQUE_ROWS, 1))
    n_matrices = -(-WEIGHT_BYTES // data.nbytes)
    ops = Recorder()
    x = ops.input(N_IN)
    for i in range(n_matrices):
        y = ops.linear(x, QuantTensor(f"w{i}", qtype, (len(data), N_IN), data.copy()))
    shape = KVShape(1, HEADS, HEAD_DIM, PAGE)
    return ops.finish(ops.select_outputs(y), shape, no_rope(MANY)), n_matrices * data.nbytes


def bench_products(backend: Backend, type_name: str, limits: Limits, seconds: float) -> Iterator[Result]:
    program, n_bytes = products(backend, type_name)
    n_values = n_bytes // by_name(type_name).block_bytes * by_name(type_name).block_elems
    executable = backend.compile(program, backend.new_kv_store(program.kv, 8), MANY)
    x = np.random.default_rng(1).normal(size=(MANY, N_IN)).astype(np.float32)
    one = 0.0
    for n in FEW:
        took = best_seconds(lambda n=n: executable.run(step_of(n, inputs=(x[:n],))), seconds)
        one = one or took
        rate = n_bytes / took / 1e9
        yield Result("matvec", type_name, n, rate, "GB/s", "read", rate / limits.read, took / one)
    took = best_seconds(lambda: executable.run(step_of(MANY, inputs=(x,))), seconds)
    rate = 2 * MANY * n_values / took / 1e9
    bound = "int8" if by_name(type_name).activation == "q8" else "f32"
    limit = getattr(limits, bound)
    yield Result("matmul", type_name, MANY, rate, "Gop/s", bound, rate / limit if limit else None)
    executable.close()


def bench_attention(backend: Backend, kv_type: str, limits: Limits, seconds: float) -> Iterator[Result]:
    n_ctx, n_layer = max(DEPTHS) + MANY, 8
    shape = KVShape(n_layer, HEADS, HEAD_DIM, PAGE, kv_type)
    width = HEADS * HEAD_DIM
    store = backend.new_kv_store(shape, -(-n_ctx // PAGE))
    random = np.random.default_rng(0)
    row = by_name(kv_type).quantize(random.normal(size=(PAGE * HEADS, HEAD_DIM)).astype(np.float32))
    for page in range(store.n_pages):
        store.write_page(page, np.tile(row.reshape(-1), 2 * n_layer))
    ops = Recorder()
    x = ops.input(width)
    for layer in range(n_layer):
        y = ops.attend(layer, x, HEADS)
    executable = backend.compile(ops.finish(ops.select_outputs(y), shape, no_rope(n_ctx)), store, MANY)
    q = random.normal(size=(MANY, width)).astype(np.float32)
    for depth in DEPTHS:
        took = best_seconds(lambda depth=depth: executable.run(step_of(1, depth, (q[:1],))), seconds)
        n_bytes = 2 * n_layer * HEADS * (depth + 1) * by_name(kv_type).row_bytes(HEAD_DIM)
        rate = n_bytes / took / 1e9
        yield Result("attention", f"{kv_type} after {depth}", 1, rate, "GB/s", "read", rate / limits.read)
        took = best_seconds(lambda depth=depth: executable.run(step_of(MANY, depth, (q,))), seconds)
        seen = MANY * depth + MANY * (MANY + 1) // 2
        rate = 4 * n_layer * width * seen / took / 1e9
        yield Result("attention", f"{kv_type} after {depth}", MANY, rate, "Gop/s", "f32", rate / limits.f32)
    executable.close()


def line(result: Result) -> str:
    share = "" if result.fraction is None else f"{100 * result.fraction:4.0f}% of {result.bound}"
    more = "" if result.of_one is None else f"  {result.of_one:5.2f} x one token"
    return (
        f"{result.part:<10}{result.name:<16}{result.tokens:>4} tokens {result.rate:8.1f} {result.unit:<6}{share}{more}"
    )


@click.command()
@click.option("--types", default=TYPES, show_default=True, help="Formats of the matrices.")
@click.option("--parts", default="matvec,matmul,attention", show_default=True, help="What is measured.")
@click.option("--threads", type=int, help="Threads to compute with.")
@click.option("--seconds", default=0.25, show_default=True, help="Time for each figure.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Also write the results there.")
def main(types: str, parts: str, threads: int | None, seconds: float, json_path: Path | None) -> None:
    """Measure single kernels of the C core."""
    n_threads = thread_count(threads)
    backend = CBackend(n_threads)
    limits = measure_limits(n_threads)
    machine = this_machine()
    click.echo(f"{machine.cpu}, {backend.description}")
    click.echo(f"limits: {limits.read:.1f} GB/s, int8 {limits.int8 or 0:.0f} Gop/s, f32 {limits.f32:.0f} Gop/s")
    results = []
    wanted = parts.split(",")
    if {"matvec", "matmul"} & set(wanted):
        for type_name in types.split(","):
            results += show(r for r in bench_products(backend, type_name, limits, seconds) if r.part in wanted)
    if "attention" in wanted:
        for kv_type in KV_TYPES:
            results += show(bench_attention(backend, kv_type, limits, seconds))
    backend.close()
    if json_path:
        about = {"machine": asdict(machine), "backend": backend.description, "limits": asdict(limits)}
        json_path.write_text(json.dumps({**about, "results": [asdict(r) for r in results]}, indent=1), encoding="utf-8")


def show(results: Iterator[Result]) -> list[Result]:
    """Prints each result as it comes."""
    done = []
    for result in results:
        click.echo(line(result))
        done.append(result)
    return done


if __name__ == "__main__":
    main()
