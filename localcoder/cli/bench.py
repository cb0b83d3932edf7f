"""`localcoder bench`: tokens per second, and how near that is to what the machine can do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from localcoder.cli.common import (
    MODEL_FILE,
    device_option,
    echo_json,
    gpu_layers_option,
    json_option,
    kv_type_option,
    open_coder,
    threads_option,
)

if TYPE_CHECKING:
    from localcoder.measure.bench import BenchResult
    from localcoder.measure.limits import Limits
    from localcoder.model.engine import Engine


@click.command()
@click.argument("model", metavar="[FILE]", required=False, type=MODEL_FILE)
@click.option(
    "-p", "prefills", type=int, multiple=True, default=(512,), show_default=True,
    help="Tokens of a prefill test; may be repeated; 0: leave it out.",
)  # fmt: skip
@click.option("-n", "n_decode", default=64, show_default=True, help="Tokens of the decode tests; 0: leave them out.")
@click.option(
    "--depth", "depths", type=int, multiple=True, default=(0,), show_default=True,
    help="Tokens before those of a decode test; may be repeated.",
)  # fmt: skip
@click.option("-r", "repetitions", default=3, show_default=True, help="Times each test is repeated.")
@click.option("--limits", "with_limits", is_flag=True, help="Also measure the machine, alone where no FILE is given.")
@kv_type_option
@threads_option
@device_option
@gpu_layers_option
@json_option
def bench(
    model: Path | None,
    prefills: tuple[int, ...],
    n_decode: int,
    depths: tuple[int, ...],
    repetitions: int,
    with_limits: bool,
    kv_type: str,
    threads: int | None,
    device: str,
    gpu_layers: int | None,
    as_json: bool,
) -> None:
    """Measure speed: prefill and decode.

    With --limits the machine's memory bandwidth and arithmetic peaks are measured in the same run, on as many threads,
    and each speed is also printed as a fraction of what bounds it.
    """
    from localcoder.backends.threads import thread_count
    from localcoder.measure.bench import bench as measure
    from localcoder.measure.bench import main_type
    from localcoder.measure.limits import measure_limits
    from localcoder.measure.machine import this_machine

    if model is None and not with_limits:
        raise click.UsageError("Missing argument 'FILE'.")
    machine = this_machine()
    n_threads = thread_count(threads)
    limits = measure_limits(n_threads) if with_limits else None
    if model is None:
        assert limits is not None
        if as_json:
            echo_json({"limits": asdict(limits), "threads": n_threads, "machine": asdict(machine)})
        else:
            click.echo(f"{machine.cpu}, {n_threads} threads")
            for line in _limit_lines(limits):
                click.echo(line)
        return
    n_ctx = max(*prefills, *(depth + n_decode for depth in depths), 1)
    with open_coder(
        model, n_ctx=n_ctx, threads=n_threads, device=device, gpu_layers=gpu_layers, kv_type=kv_type
    ) as coder:
        engine = coder.engine
        tests = measure(engine, prefills=prefills, n_decode=n_decode, depths=depths, repetitions=repetitions)
        type_name = main_type(engine.file)
        model_bytes = sum(tensor.nbytes for tensor in engine.file.tensors.values())
        about = {
            "model": str(model),
            "type": type_name,
            "kv_type": kv_type,
            "model_bytes": model_bytes,
            "backend": engine.backend.name,
            "backend_description": engine.backend.description,
            "threads": n_threads,
            "machine": asdict(machine),
        }
        if not as_json:
            click.echo(f"{machine.cpu}, {n_threads} threads, {engine.backend.description}")
            click.echo(f"{model}: {type_name}, {model_bytes / 2**20:,.1f} MiB of weights")
        done = []
        for result in tests:
            done.append(result)
            if not as_json and not limits:
                click.echo(_line(result))
        if limits:
            limits = limits.best_of(measure_limits(n_threads))
        works = [_work(engine, result, limits) if limits else {} for result in done]
    if as_json:
        results = [{**asdict(result), **work} for result, work in zip(done, works)]
        echo_json({"results": results, "limits": asdict(limits) if limits else None, **about})
    elif limits:
        for result, work in zip(done, works):
            click.echo(f"{_line(result)}  {_fraction(work)}")
        for line in _limit_lines(limits):
            click.echo(line)


def _line(result: BenchResult) -> str:
    low, high = min(result.samples), max(result.samples)
    return f"{result.test:>10}  {result.tokens_per_second:10.2f} tokens/s  ({low:.2f} to {high:.2f})"


def _limit_lines(limits: Limits) -> Iterator[str]:
    yield f"memory: {limits.read:.1f} GB/s of streaming reads"
    for kind, name in (("int8", "8-bit integers"), ("bf16", "bfloat16"), ("f32", "float32")):
        peak = getattr(limits, kind)
        yield f"{name}: {peak:,.0f} Gop/s of multiply-adds" if peak else f"{name}: not measured"


def _work(engine: Engine, result: BenchResult, limits: Limits) -> dict[str, Any]:
    """What bounds a test, how much of it was reached (GB/s or Gop/s), and the fraction."""
    from localcoder.measure.limits import decode_bytes, prefill_kind, prefill_ops

    if result.is_prefill:
        bound, work = prefill_kind(engine), prefill_ops(engine)
    else:
        bound, work = "read", decode_bytes(engine, result.depth)
    rate, limit = work * result.tokens_per_second / 1e9, getattr(limits, bound)
    return {"bound": bound, "rate": rate, "fraction": rate / limit if limit else None}


def _fraction(work: dict[str, Any]) -> str:
    if work["fraction"] is None:
        return ""
    unit = "GB/s" if work["bound"] == "read" else f"Gop/s {work['bound']}"
    return f"{work['rate']:,.1f} {unit} = {100 * work['fraction']:.0f}% of the limit"
