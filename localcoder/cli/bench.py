"""`localcoder bench`: tokens per second."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from localcoder.cli.common import device_option, echo_json, json_option, open_coder, threads_option


@click.command()
@click.argument("model", metavar="FILE", type=click.Path(path_type=Path))
@click.option("-p", "n_prefill", default=512, show_default=True, help="Tokens of the prefill test; 0: leave it out.")
@click.option("-n", "n_decode", default=64, show_default=True, help="Tokens of the decode test; 0: leave it out.")
@click.option("-r", "repetitions", default=3, show_default=True, help="Times each test is repeated.")
@threads_option
@device_option
@json_option
def bench(
    model: Path,
    n_prefill: int,
    n_decode: int,
    repetitions: int,
    threads: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Measure speed: prefill and decode."""
    from localcoder.backends.threads import thread_count
    from localcoder.measure.bench import bench as measure
    from localcoder.measure.bench import main_type
    from localcoder.measure.machine import this_machine

    machine = this_machine()
    n_threads = thread_count(threads)
    with open_coder(model, n_ctx=max(n_prefill, n_decode, 1), threads=n_threads, device=device) as coder:
        engine = coder.engine
        tests = measure(engine, n_prefill=n_prefill, n_decode=n_decode, repetitions=repetitions)
        type_name = main_type(engine.file)
        model_bytes = sum(tensor.nbytes for tensor in engine.file.tensors.values())
        about = {
            "model": str(model),
            "type": type_name,
            "model_bytes": model_bytes,
            "backend": engine.backend.name,
            "backend_description": engine.backend.description,
            "threads": n_threads,
            "machine": asdict(machine),
        }
        if not as_json:
            click.echo(f"{machine.cpu}, {n_threads} threads, {engine.backend.description}")
            click.echo(f"{model}: {type_name}, {model_bytes / 2**20:,.1f} MiB of weights")
        results = []
        for result in tests:
            results.append(asdict(result))
            if not as_json:
                low, high = min(result.samples), max(result.samples)
                click.echo(f"{result.test:>8}  {result.tokens_per_second:10.2f} tokens/s  ({low:.2f} to {high:.2f})")
    if as_json:
        echo_json({"results": results, **about})
