"""Checks a card: are its results right, what can it do at most, and how near to that do decode and prefill come.

    python tools/gpu_check.py [--device cuda:0] [--parts correctness,roofline,speed] [--shapes 1.3b,6.7b,33b]
        [--types q4_0,q4_k_m,q6_k,q8_0,f16] [--out tools/results]

Weights are random blocks and exist once in main memory, however many layers there are: nothing large travels. Results
go to --out as JSON, named after the card, and are printed as a table. `--device cuda-emulated --shapes tiny` tries this
program where there is no card.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from localcoder.backends.base import Backend, Executable
from localcoder.backends.cuda.backend import CudaBackend
from localcoder.backends.cuda.device import Memory
from localcoder.backends.placement import CardsBackend
from localcoder.backends.program import KVShape, Program, Recorder, RopeTable, Step
from localcoder.backends.reference import ReferenceBackend
from localcoder.backends.select import open_backend
from localcoder.quants import ALL, QuantTensor, QuantType, by_name
from localcoder.quants.spec import Bytes, Float32

PAGE = 64
DECODE_BATCHES, DECODE_DEPTHS = (1, 2, 4, 8), (0, 8192)
PREFILL_LENGTHS = (128, 512, 2048, 8192)
UBATCH = 2048
TOLERANCE = 1e-3
ROUNDED_TOLERANCE = 0.03  # where one activation may be rounded the other way
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


def correctness(backend: CudaBackend) -> Iterator[dict[str, Any]]:
    shape = Shape(2, 256, 512, 4, 2, 320, 64)
    cases = [(qtype.name, "f16", [21, 1, 3], 1) for qtype in ALL]
    cases += [(name, kv, [70, 1, 9], 3) for name in ("f16", "q8_0", "q4_k_m") for kv in ("f16", "q8_0")]
    cases += [("q4_k_m", "f16", [512, 300, 1, 1], 1)]
    for types, kv_type, lengths, n_sequences in cases:
        program, _ = record(shape, types, sum(lengths), kv_type)
        expected = all_logits(ReferenceBackend(), program, lengths, n_sequences)
        result = all_logits(backend, program, lengths, n_sequences)
        errors = np.abs(result - expected) / np.abs(expected).max()
        rounded = kv_type != "f16" or by_name(MIXED.get(types, (types,))[0]).activation == "q8"
        worst = np.unravel_index(int(np.argmax(np.where(np.isnan(errors), np.inf, errors))), errors.shape)
        yield {
            "part": "correctness",
            "types": types,
            "kv_type": kv_type,
            "lengths": lengths,
            "sequences": n_sequences,
            "max_error": float(errors.max()),
            "median_error": float(np.median(errors.max(axis=1))),
            "worst": [int(i) for i in worst],
            "ok": bool(errors.max() <= (ROUNDED_TOLERANCE if rounded else TOLERANCE)),
        }


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


def roofline(backend: CudaBackend, n_bytes: int) -> Iterator[dict[str, Any]]:
    """GB/s read and written by a copy on the card; Tflop/s of a bf16 product where torch can use the card."""
    device = backend.device
    source, target, word = Memory(device, n_bytes), Memory(device, n_bytes), np.zeros(1, np.uint8)

    def copies() -> None:
        for _ in range(8):
            device.copy(source.address, target.address, n_bytes)
        target.read(word)

    rate = 16 * n_bytes / median_seconds(copies, 1) / 1e9
    source.free(), target.free()
    matrix = None
    try:
        import torch

        if torch.cuda.is_available():
            a = torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda")

            def product() -> None:
                for _ in range(4):
                    a @ a
                torch.cuda.synchronize()

            matrix = 4 * 2 * 8192**3 / median_seconds(product, 2) / 1e12
    except ImportError:
        pass
    yield {"part": "roofline", "copy_gb_per_s": rate, "bf16_tflop_per_s": matrix}


def speed(backend: CudaBackend, name: str, types: str, quick: bool, limits: dict[str, Any]) -> Iterator[dict[str, Any]]:
    shape = SHAPES[name]
    batches, depths = ((1, 2), (0, 128)) if quick else (DECODE_BATCHES, DECODE_DEPTHS)
    lengths = (20,) if quick else PREFILL_LENGTHS
    n_ctx = max(*lengths, max(depths) + 1)
    program, n_bytes = record(shape, types, n_ctx, "f16")
    for depth in depths:
        kv_bytes = 4 * shape.n_layer * shape.n_head_kv * shape.head_dim * (depth + 1)
        executable = compiled(backend, program, depth + 1, max(batches), max(batches))
        for n in batches:
            took = median_seconds(partial(executable.run, step_of(1, depth, n)), 0 if quick else 1)
            rate = (n_bytes + n * kv_bytes) / took / 1e9
            yield {
                "part": "decode",
                "shape": name,
                "types": types,
                "batch": n,
                "depth": depth,
                "tokens_per_s": n / took,
                "gb_per_s": rate,
                "of_limit": rate / limits["copy_gb_per_s"] if limits else None,
            }
        executable.close()
    executable = compiled(backend, program, n_ctx, 1, min(UBATCH, max(lengths)))
    weights = sum(
        op.weight.shape[0] * op.weight.shape[1]
        for op in program.ops
        if hasattr(op, "x") and hasattr(op, "weight") and isinstance(op.weight, QuantTensor)
    )
    for n in lengths:

        def prefill(n: int = n) -> None:
            for start in range(0, n, UBATCH):
                executable.run(step_of(min(UBATCH, n - start), start))

        took = median_seconds(prefill, 0 if quick else 2)
        rate = 2 * weights * n / took / 1e12
        limit = limits.get("bf16_tflop_per_s")
        yield {
            "part": "prefill",
            "shape": name,
            "types": types,
            "tokens": n,
            "tokens_per_s": n / took,
            "tflop_per_s": rate,
            "of_limit": rate / limit if limit else None,
        }
    executable.close()


def line(result: dict[str, Any]) -> str:
    def shown(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)

    return "  ".join(f"{key}={shown(value)}" for key, value in result.items() if key != "part")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parts", default="correctness,roofline,speed")
    parser.add_argument("--shapes", default="1.3b,6.7b,33b")
    parser.add_argument("--types", default="q4_0,q4_k_m,q6_k,q8_0,f16")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results")
    options = parser.parse_args(arguments)
    parts, shapes = options.parts.split(","), options.shapes.split(",")
    quick = shapes == ["tiny"]
    cards = open_backend(options.device)
    assert isinstance(cards, CardsBackend)
    backend = cards.card(0)
    results: list[dict[str, Any]] = []
    limits: dict[str, Any] = {}

    def take(found: Iterator[dict[str, Any]]) -> None:
        for result in found:
            results.append(result)
            print(f"{result['part']:<12} {line(result)}", flush=True)

    if "correctness" in parts:
        take(correctness(backend))
    if "roofline" in parts:
        take(roofline(backend, 1 << (20 if quick else 30)))
        limits = results[-1]
    if "speed" in parts:
        for name in shapes:
            for types in options.types.split(","):
                take(speed(backend, name, types, quick, limits))
    failed = [result for result in results if result.get("ok") is False]
    facts = {"device": backend.description, "system": platform.platform(), "date": time.strftime("%Y-%m-%d")}
    options.out.mkdir(parents=True, exist_ok=True)
    label = "".join(c if c.isalnum() else "-" for c in backend.description.split(",")[0].lower())
    path = options.out / f"gpu-{label}-{facts['date']}.json"
    path.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n", encoding="utf-8")
    print(f"{len(results)} results, {len(failed)} wrong; {path}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
