"""Checks a card: are its results right, what can it do at most, and how near to that do decode and prefill come.

    python tools/gpu_check.py [--minutes 9] [--device cuda:0] [--parts correctness,highest,roofline,decode,prefill]
        [--shapes 1.3b,6.7b,33b] [--types q4_k_m,q8_0,q4_0,q6_k,f16] [--out tools/results] [--again]

Weights are random blocks and exist once in main memory, however many layers there are: nothing large travels. Each
result is in --out at once, as JSON and as a table, named after the card. A check that fails, even one that takes the
card's context or the process with it, is noted, and the next one starts in a process of its own. After --minutes no
other check is started; the same command then goes on with those that are left, and --again repeats the failed ones.
`--device cuda-emulated --shapes tiny` tries this program where there is no card.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from gpu_report import PARTS, Check, Report, Result, shown
from same_rounding import FollowingBackend, ListeningBackend

from localcoder.backends.base import Backend, Executable
from localcoder.backends.cuda.backend import CudaBackend
from localcoder.backends.cuda.device import Launch, Memory
from localcoder.backends.highest import Wanted, wanted_of
from localcoder.backends.placement import CardsBackend
from localcoder.backends.program import KVShape, Program, Recorder, RopeTable, Step
from localcoder.backends.select import open_backend
from localcoder.errors import LocalcoderError
from localcoder.quants import ALL, QuantTensor, QuantType, by_name
from localcoder.quants.spec import Bytes, Float32

PAGE = 64
RESTART = 3  # how a process ends after a check that failed: what comes next needs a fresh one
MOST_RESTARTS = 40
DECODE_BATCHES = {0: (1, 2, 4, 8, 16), 8192: (1, 2, 4, 8), 16320: (1,)}  # by depth
PREFILL_LENGTHS = (128, 512, 2048, 8192)
UBATCH = 2048
TOLERANCE = 1e-3
# How far from a tie a value may be rounded the other way, of the largest that shares its scale, by kind of cache: q8_0
# has scales that are halves, its values meet many tokens as halves, and what they add up to may be small.
TIE = {"f16": 1e-4, "q8_0": 0.05}
MIXED = {"q4_k_m": ("q4_k", "q6_k")}  # most matrices; attn_v and ffn_down of every second layer, and the output


@dataclass(frozen=True)
class Shape:
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    n_vocab: int = 32256
    head_dim: int = 128


SHAPES = {
    "tiny": Shape(2, 256, 512, 4, 2, 320, 64),
    "1.3b": Shape(24, 2048, 5632, 16, 16),  # n_ff as padded: a whole number of super-blocks
    "6.7b": Shape(32, 4096, 11008, 32, 32),
    "33b": Shape(62, 7168, 19200, 56, 8),
}


@cache
def random_rows(qtype: QuantType, n_out: int, n_in: int) -> Bytes:
    """Random blocks whose values are about as large as those of a trained matrix."""
    rng = np.random.default_rng(n_out)
    if qtype.name in ("f32", "f16", "bf16"):
        unique = qtype.quantize((rng.standard_normal((64, n_in)) / np.sqrt(n_in)).astype(np.float32))
    else:
        blocks = rng.integers(0, 256, 64 * n_in // qtype.block_elems * qtype.block_bytes, np.uint8).view(qtype.block)
        for field in ("d", "dmin", "m"):
            if field in (qtype.block.names or ()) and blocks[field].dtype == np.dtype("<f2"):
                blocks[field] = 1
        if qtype.name == "mxfp4":
            blocks["e"] = 120
        if qtype.name == "nvfp4":
            blocks["d"] = 0x08
        if qtype.name == "iq1_m":  # d = 2^-7, its bits spread over the tops of four words
            blocks["scales"] = (blocks["scales"] & 0x0FFF) | np.array([0, 0, 0, 0x2000], np.uint16)
        spread = float(np.std(qtype.dequantize(blocks.view(np.uint8).reshape(64, -1))))
        for field in ("d", "dmin", "m"):
            if field in (qtype.block.names or ()) and blocks[field].dtype == np.dtype("<f2"):
                blocks[field] = 1 / (spread * np.sqrt(n_in))
        unique = blocks.view(np.uint8).reshape(64, -1)
    return np.resize(unique, (n_out, unique.shape[1]))


def record(shape: Shape, types: str, n_ctx: int, kv_type: str) -> tuple[Program, int]:
    """A model of this shape as a program, and the bytes of weights that a token reads."""
    most, better = (by_name(name) for name in MIXED.get(types, (types, types)))
    n_bytes = 0

    def matrix(n_out: int, n_in: int, qtype: QuantType) -> QuantTensor:
        nonlocal n_bytes
        data = random_rows(qtype, n_out, n_in)
        n_bytes += data.nbytes
        return QuantTensor("w", qtype, (n_out, n_in), data)

    ops, norm = Recorder(), np.ones(shape.n_embd, np.float32)
    q_width, kv_width = shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim
    x = ops.embed(QuantTensor("e", most, (shape.n_vocab, shape.n_embd), random_rows(most, shape.n_vocab, shape.n_embd)))
    for i in range(shape.n_layer):
        some = better if i % 2 else most
        h = ops.rms_norm(x, norm, 1e-6)
        q = ops.rope(ops.linear(h, matrix(q_width, shape.n_embd, most)), shape.n_head)
        k = ops.rope(ops.linear(h, matrix(kv_width, shape.n_embd, most)), shape.n_head_kv)
        ops.write_kv(i, k, ops.linear(h, matrix(kv_width, shape.n_embd, some)))
        x = ops.add(x, ops.linear(ops.attend(i, q, shape.n_head), matrix(shape.n_embd, q_width, most)))
        h = ops.rms_norm(x, norm, 1e-6)
        gate, up = (ops.linear(h, matrix(shape.n_ff, shape.n_embd, most)) for _ in range(2))
        x = ops.add(x, ops.linear(ops.silu_mul(gate, up), matrix(shape.n_embd, shape.n_ff, some)))
    x = ops.rms_norm(ops.select_outputs(x), norm, 1e-6)
    logits = ops.linear(x, matrix(shape.n_vocab, shape.n_embd, better))
    angles = np.arange(n_ctx)[:, None] * 100000.0 ** (-np.arange(0, shape.head_dim, 2) / shape.head_dim) / 4
    rope = RopeTable(np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))
    kv = KVShape(shape.n_layer, shape.n_head_kv, shape.head_dim, PAGE, kv_type)
    return ops.finish(logits, kv, rope), n_bytes


def step_of(n: int, start: int, n_sequences: int = 1, outputs: str = "last") -> Step:
    """The next `n` tokens of each of `n_sequences` sequences that have `start` already."""
    pages = -(-(start + n) // PAGE)
    count = np.arange(n * n_sequences, dtype=np.int32)
    wanted = count if outputs == "all" else count[n - 1 :: n]
    table = np.arange(pages * n_sequences, dtype=np.int32).reshape(n_sequences, pages)
    return Step(count % 251, start + count % n, count // n, table, np.ascontiguousarray(wanted))


def compiled(backend: Backend, program: Program, n_positions: int, n_sequences: int, max_tokens: int) -> Executable:
    store = backend.new_kv_store(program.kv, n_sequences * -(-n_positions // PAGE))
    return backend.compile(program, store, max_tokens)


# --- right? ----------------------------------------------------------------------------------------------------------


def all_logits(backend: Backend, program: Program, lengths: list[int], n_sequences: int) -> Float32:
    executable = compiled(backend, program, sum(lengths), n_sequences, max(lengths) * n_sequences)
    # Pages of a sequence stay where they are while it grows: the table has room for all from the start.
    whole = step_of(sum(lengths), 0, n_sequences).page_table
    results, start = [], 0
    for n in lengths:
        step = step_of(n, start, n_sequences, "all")
        results.append(executable.run(Step(step.tokens, step.positions, step.sequences, whole, step.outputs)))
        start += n
    executable.close()
    return np.concatenate(results)


def correctness_checks(backend: CudaBackend) -> Iterator[Check]:
    """Logits of small models, against the reference: of recorded steps, and of launches one by one."""
    cases = [(qtype.name, "f16", [21, 1, 3], 1, 64, 2) for qtype in ALL]
    cases += [(name, kv, [70, 1, 9], 3, 64, 2) for name in ("f16", "q8_0", "q4_k_m") for kv in ("f16", "q8_0")]
    cases += [("q4_k_m", "f16", [512, 300, 1, 1], 1, 64, 2)]
    cases += [("f16", "f16", [40, 1], 1, dim, n_kv) for dim in (32, 80, 128, 192, 256) for n_kv in (1, 4)]
    for case in cases:
        types, kv_type, lengths, n_sequences, dim, n_kv = case
        name = f"{types} kv {kv_type} {n_sequences} x {lengths} heads of {dim} over {n_kv}"
        yield Check("correctness", name, partial(compare, backend, *case))


def compare(
    backend: CudaBackend, types: str, kv_type: str, lengths: list[int], n_sequences: int, head_dim: int, n_head_kv: int
) -> Iterator[Result]:
    program, _ = record(Shape(2, 256, 512, 4, n_head_kv, 320, head_dim), types, sum(lengths), kv_type)
    card = ListeningBackend(backend.device)
    reference = FollowingBackend(card)
    recorded, result, expected = (all_logits(b, program, lengths, n_sequences) for b in (backend, card, reference))
    errors = np.abs(result - expected) / np.abs(expected).max()
    worst = np.unravel_index(int(np.argmax(np.where(np.isnan(errors), np.inf, errors))), errors.shape)
    nearer = max(reference.activations.worst, reference.cache.worst)
    yield {
        "max_error": float(errors.max()),
        "median_error": float(np.median(errors.max(axis=1))),
        "worst": [int(i) for i in worst],
        "rounded_otherwise": reference.activations.n_moved / max(reference.activations.n, 1),
        "from_a_tie": nearer,
        "ok": bool(errors.max() <= TOLERANCE and nearer <= TIE[kv_type] and np.array_equal(result, recorded)),
    }


def rows_program(width: int, n: int) -> Program:
    """A program whose logits are its input."""
    ops = Recorder()
    table = np.zeros((n, 1), np.float32)
    logits = ops.add(ops.input(width), ops.input(width))
    return ops.finish(logits, KVShape(1, 1, 2, PAGE), RopeTable(table, table))


def highest(backend: CudaBackend, width: int, seconds: float) -> Iterator[Result]:
    """The highest logits: are they the right ones, and what do they cost beside a copy of the whole row."""
    n = 4
    rows = np.round(np.random.default_rng(width).standard_normal((n, width)), 2).astype(np.float32)
    rows[3, width // 2] = np.nan
    executable = compiled(backend, rows_program(width, n), n, 1, n)
    step = step_of(n, 0, 1, "all")
    step = step._replace(inputs=(rows, np.zeros_like(rows)))
    whole = median_seconds(partial(executable.run, step), seconds)
    for k in (1, 40, 512):
        wanted = Wanted(k, width - 7)
        found = executable.run_highest(step, wanted)
        same = [np.array_equal(a.ids, wanted_of(row, wanted).ids) for a, row in zip(found, rows)]
        took = median_seconds(partial(executable.run_highest, step, wanted), seconds)
        yield {"k": k, "ms": 1e3 * took, "whole_rows_ms": 1e3 * whole, "ok": all(same)}
    executable.close()


# --- fast? -----------------------------------------------------------------------------------------------------------


def median_seconds(run: Callable[[], object], seconds: float) -> float:
    """After one run to warm up, the median of at least three."""
    run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or (time.perf_counter() < end and len(times) < 100):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def roofline(backend: CudaBackend, quick: bool) -> Iterator[Result]:
    """GB/s read and written by a copy on the card; tera-operations per second of mma.sync alone, and of a large bf16
    product where torch can use the card."""
    device, n_bytes = backend.device, 1 << (20 if quick else 30)
    source, target, word = Memory(device, n_bytes), Memory(device, n_bytes), np.zeros(1, np.uint8)

    def copies() -> None:
        for _ in range(8):
            device.copy(source.address, target.address, n_bytes)
        target.read(word)

    result: Result = {"copy_gb_per_s": 16 * n_bytes / median_seconds(copies, 0 if quick else 1) / 1e9}
    source.free()
    n_blocks, rounds = (1, 2) if quick else (4096, 4096)
    for kind, operations in (("f16", 4096), ("bf16", 4096), ("s8", 8192)):

        def products(kind: str = kind) -> None:
            device.launch(Launch(f"lc_peak_{kind}", (n_blocks, 1, 1), 256, (rounds, target.address)))
            target.read(word)

        took = median_seconds(products, 0 if quick else 1)
        result[f"mma_{kind}_tera_per_s"] = n_blocks * 8 * 8 * rounds * operations / took / 1e12
    target.free()
    yield {**result, "bf16_tflop_per_s": torch_rate() or result["mma_bf16_tera_per_s"]}


def torch_rate() -> float | None:
    """Tflop/s of torch's bf16 product."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    a = torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda")

    def product() -> None:
        for _ in range(4):
            a @ a
        torch.cuda.synchronize()

    return 4 * 2 * 8192**3 / median_seconds(product, 2) / 1e12


def decode(backend: CudaBackend, shape: Shape, types: str, quick: bool, limits: Result) -> Iterator[Result]:
    batches = {0: (1, 2), 128: (1,)} if quick else DECODE_BATCHES
    program, n_bytes = record(shape, types, max(batches) + 1, "f16")
    for depth, sizes in batches.items():
        kv_bytes = 4 * shape.n_layer * shape.n_head_kv * shape.head_dim * (depth + 1)
        executable = compiled(backend, program, depth + 1, max(sizes), max(sizes))
        for n in sizes:
            step = step_of(1, depth, n)
            whole = median_seconds(partial(executable.run, step), 0 if quick else 1)
            greedy = partial(executable.run_highest, step, Wanted(1, shape.n_vocab))
            took = median_seconds(greedy, 0 if quick else 1)
            rate = (n_bytes + n * kv_bytes) / took / 1e9
            yield {
                "batch": n,
                "depth": depth,
                "tokens_per_s": n / took,
                "with_all_logits": n / whole,
                "gb_per_s": rate,
                "of_limit": rate / limits["copy_gb_per_s"] if limits else None,
            }
        executable.close()


def prefill(backend: CudaBackend, shape: Shape, types: str, quick: bool, limits: Result) -> Iterator[Result]:
    lengths = (20,) if quick else PREFILL_LENGTHS
    program, _ = record(shape, types, max(lengths), "f16")
    executable = compiled(backend, program, max(lengths), 1, min(UBATCH, max(lengths)))
    weights = sum(
        op.weight.shape[0] * op.weight.shape[1]
        for op in program.ops
        if hasattr(op, "x") and hasattr(op, "weight") and isinstance(op.weight, QuantTensor)
    )
    for n in lengths:

        def whole(n: int = n) -> None:
            for start in range(0, n, UBATCH):
                executable.run(step_of(min(UBATCH, n - start), start))

        took = median_seconds(whole, 0 if quick else 2)
        rate = 2 * weights * n / took / 1e12
        limit = limits.get("bf16_tflop_per_s")
        of_limit = rate / limit if limit else None
        yield {"tokens": n, "tokens_per_s": n / took, "tflop_per_s": rate, "of_limit": of_limit}
    executable.close()


# --- the plan -----------------------------------------------------------------------------------


def plan(backend: CudaBackend, options: argparse.Namespace, limits: Callable[[], Result]) -> Iterator[Check]:
    quick = options.shapes == "tiny"
    yield from correctness_checks(backend)
    for width in (5000,) if quick else (32256, 102400):
        yield Check("highest", f"of {width}", partial(highest, backend, width, 0 if quick else 1))
    yield Check("roofline", "limits", partial(roofline, backend, quick))
    for name in options.shapes.split(","):
        for types in options.types.split(","):
            for part, run in (("decode", decode), ("prefill", prefill)):

                def measure(run: Any = run, name: str = name, types: str = types) -> Iterator[Result]:
                    return run(backend, SHAPES[name], types, quick, limits())

                yield Check(part, f"{name} {types}", measure)


def run_checks(options: argparse.Namespace) -> int:
    """Those that are wanted and not done, until the time is over or one fails."""
    end = time.monotonic() + 60 * options.minutes
    cards = open_backend(options.device)
    if not isinstance(cards, CardsBackend):
        raise LocalcoderError(f"{options.device} is no card whose kernels are in csrc/cuda")
    report = Report(cards.card(0).description, options.out)
    if options.again:
        report.forget_failed()

    def limits() -> Result:
        return next((r for r in report.results if r["part"] == "roofline" and "error" not in r), {})

    wanted = [check for check in plan(cards.card(0), options, limits) if check.part in options.parts.split(",")]
    left = [check for check in wanted if check.key not in report.done]
    while left and time.monotonic() < end:
        check = left.pop(0)
        report.starts(check)
        failure: Result | None = None
        try:
            for result in check.run():
                report.add(check.part, check.name, result)
                facts = "  ".join(f"{key}={shown(value)}" for key, value in result.items())
                print(f"{check.part:<12} {check.name}  {facts}", flush=True)
        except Exception as e:
            failure = {"error": f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"}
        report.ends()
        if failure is not None:
            report.add(check.part, check.name, failure)
            print(f"{check.part:<12} {check.name}  {failure['error']}", flush=True)
            return RESTART
    n_failed = len(report.failed)
    print(f"{len(report.results)} results, {n_failed} wrong, {len(left)} checks left; {report.path}")
    return int(n_failed > 0)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--shapes", default="1.3b,6.7b,33b")
    parser.add_argument("--types", default="q4_k_m,q8_0,q4_0,q6_k,f16")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results")
    parser.add_argument("--minutes", type=float, default=9, help="after which no other check starts")
    parser.add_argument("--again", action="store_true", help="also what failed before")
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    known = {"part": PARTS, "shape": SHAPES, "type": [*MIXED, *(qtype.name for qtype in ALL)]}
    for (what, names), text in zip(known.items(), (options.parts, options.shapes, options.types)):
        for name in text.split(","):
            if name not in names:
                parser.error(f"{name!r} is no {what}; known: {', '.join(names)}")
    if options.in_this_process:
        try:
            return run_checks(options)
        except LocalcoderError as e:
            print(f"gpu_check: {e}", file=sys.stderr)
            return 2
    end = time.monotonic() + 60 * options.minutes
    status, first = RESTART, True
    for _ in range(MOST_RESTARTS):
        minutes = max((end - time.monotonic()) / 60, 0)
        again = [argument for argument in arguments if first or argument != "--again"]
        command = [
            sys.executable,
            str(Path(__file__).resolve()),
            *again,
            "--minutes",
            str(minutes),
            "--in-this-process",
        ]
        status, first = subprocess.run(command, check=False).returncode, False
        if status in (0, 1, 2):
            break
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
