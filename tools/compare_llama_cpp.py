"""How fast localcoder runs GGUF files, beside llama.cpp on the same machine.

    python tools/compare_llama_cpp.py FILE.gguf... [--tests pp128,pp512,tg32,tg32x4,tg32@8192] [--rounds 3]

Each program runs in a process of its own that keeps the file open and waits while the other one computes; they take
turns, test by test, with the same number of threads. llama.cpp is asked twice, with and without repacking its weights,
and the better median counts. The ratio is that of each round; its median and range are reported, and what fraction of
the limit measured in the same run ours reaches.

Results go to `tools/results/speed-CPU-INSTRUCTIONS-N-threads.json`; a run replaces what it measured again and keeps
the rest, so that a long comparison can be made in parts. The table (.md), the plot (.png) and the README's table are
drawn anew from it. `--variants openvino --out FILE.json` compares with OpenVINO GenAI instead (prefill alone, of files
that it reads). Needs llama-cpp-python, compiled for this machine, for the plot matplotlib, and a machine that
does nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from speed_table import RESULTS, write_readme

TESTS = "pp128,pp512,pp2048,tg32,tg32x4,tg32x8,tg32@2048,tg32@8192"
OURS, THEIRS = "localcoder", {"default": True, "no repacking": False}
OPENVINO = "openvino"
N_BATCH = 512


@dataclass(frozen=True)
class Test:
    """`pp512`: 512 tokens at once; `tg32@2048`: 32 one by one, after 2048 others; `tg32x4`: four in each step, with the
    logits of all, as speculation has them checked."""

    name: str
    n: int
    depth: int
    at_once: int

    @property
    def is_prefill(self) -> bool:
        return self.name.startswith("pp")

    def steps_of(self, tokens: NDArray[Any]) -> list[NDArray[Any]]:
        return np.split(tokens, self.n // self.at_once)

    @property
    def n_logits(self) -> int:
        return 1 if self.is_prefill else self.at_once


def test_of(name: str) -> Test:
    match = re.fullmatch(r"(pp|tg)([1-9]\d*)(?:x([1-9]\d*))?(?:@(\d+))?", name)
    if not match or (match[1] == "pp" and match[3]) or int(match[2]) % int(match[3] or 1):
        raise click.BadParameter(f"{name}: expected something like pp512, tg32, tg32x4 or tg32@2048")
    n = int(match[2])
    return Test(name, n, int(match[4] or 0), n if match[1] == "pp" else int(match[3] or 1))


# --- the two programs, each in its own process ----------------------------------------------------------------------


def serve(seconds_of: Callable[[Test], float]) -> None:
    """Answers each line of stdin, a test's name, with its seconds."""
    print("ready", flush=True)
    for line in sys.stdin:
        print(seconds_of(test_of(line.strip())), flush=True)


def serve_ours(path: Path, n_ctx: int, threads: int, kv_type: str) -> None:
    from localcoder.backends.select import open_backend
    from localcoder.files.gguf_reader import GGUFFile
    from localcoder.measure.bench import sequence_of
    from localcoder.model.engine import Chunk, Engine

    engine = Engine(GGUFFile.open(path), open_backend("auto", threads), n_ctx=n_ctx, kv_type=kv_type)

    def seconds_of(test: Test) -> float:
        sequence = sequence_of(engine, test.depth)
        tokens = np.random.default_rng(0).integers(0, engine.n_vocab, test.n, np.int32)
        start = time.perf_counter()
        for piece in test.steps_of(tokens):
            engine.evaluate([Chunk(sequence, piece, test.n_logits)])
        seconds = time.perf_counter() - start
        sequence.close()
        return seconds

    serve(seconds_of)


def serve_theirs(path: Path, n_ctx: int, threads: int, kv_type: str, variant: str) -> None:
    import llama_cpp

    @llama_cpp.llama_log_callback
    def quiet(*_: object) -> None: ...

    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    model_options = llama_cpp.llama_model_default_params()
    model_options.use_extra_bufts = THEIRS[variant]
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_options)
    options = llama_cpp.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch = n_ctx, N_BATCH, N_BATCH
    options.n_threads = options.n_threads_batch = threads
    if kv_type != "f16":
        options.type_k = options.type_v = getattr(llama_cpp, f"GGML_TYPE_{kv_type.upper()}")
    context = llama_cpp.llama_init_from_model(model, options)
    if not context:
        raise SystemExit(f"llama.cpp cannot open {path}")
    memory = llama_cpp.llama_get_memory(context)
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    past = [0]  # how many tokens of the past are in its cache
    wanted = (ctypes.c_int8 * N_BATCH)(*[1] * N_BATCH)

    def decode(tokens: Any, n_logits: int = 1) -> None:
        for at in range(0, len(tokens), N_BATCH):
            piece = (ctypes.c_int32 * len(tokens[at : at + N_BATCH]))(*map(int, tokens[at : at + N_BATCH]))
            batch = llama_cpp.llama_batch_get_one(piece, len(piece))
            if n_logits > 1:
                batch.logits = wanted
            if llama_cpp.llama_decode(context, batch):
                raise SystemExit("llama.cpp failed to decode")

    def seconds_of(test: Test) -> float:
        if past[0] > test.depth:
            llama_cpp.llama_memory_seq_rm(memory, 0, test.depth, -1)
            past[0] = test.depth
        decode(np.arange(past[0], test.depth) % n_vocab)
        tokens = np.random.default_rng(0).integers(0, n_vocab, test.n)
        start = time.perf_counter()
        for piece in test.steps_of(tokens):
            decode(piece, test.n_logits)
        seconds = time.perf_counter() - start
        llama_cpp.llama_memory_seq_rm(memory, 0, test.depth, -1)
        past[0] = test.depth
        return seconds

    serve(seconds_of)


def serve_openvino(path: Path, threads: int) -> None:
    """The time to the first token of a prompt that it has not seen."""
    import openvino
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(str(path), "CPU", INFERENCE_NUM_THREADS=threads)
    config = openvino_genai.GenerationConfig(max_new_tokens=1, ignore_eos=True)
    random = np.random.default_rng(0)

    def seconds_of(test: Test) -> float:
        if not test.is_prefill or test.depth:
            raise SystemExit("OpenVINO is asked for prefill alone")
        tokens = random.integers(0, 32000, (1, test.n))
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(tokens), openvino.Tensor(np.ones_like(tokens)))
        return float(pipeline.generate(inputs, config).perf_metrics.get_ttft().mean) / 1e3

    serve(seconds_of)


@contextlib.contextmanager
def started(who: str, path: Path, n_ctx: int, threads: int, kv_type: str) -> Iterator[Callable[[Test], float]]:
    """A program that waits for tests; yields the function that gives it one and returns tokens per second."""
    command = [sys.executable, __file__, str(path), "--serve", who, "--n-ctx", n_ctx, "--threads", threads]
    process = subprocess.Popen(
        [*map(str, command), "--kv-type", kv_type], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout
    stdin, stdout = process.stdin, process.stdout

    def answer() -> str:
        line = stdout.readline()
        if not line:
            raise SystemExit(f"{who} ended early, with {process.wait()}")
        return line

    def speed_of(test: Test) -> float:
        stdin.write(f"{test.name}\n")
        stdin.flush()
        return test.n / float(answer())

    try:
        answer()
        yield speed_of
    finally:
        stdin.close()
        process.wait()


# --- the comparison -------------------------------------------------------------------------------------------------


def compare(
    path: Path, tests: Sequence[Test], rounds: int, threads: int, kv_type: str, variants: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yields one result a test."""
    from localcoder.backends.select import open_backend
    from localcoder.files.gguf_reader import GGUFFile
    from localcoder.measure.bench import main_type
    from localcoder.measure.limits import decode_bytes, measure_limits, prefill_kind, prefill_ops
    from localcoder.model.engine import Engine

    n_ctx = max(test.n + test.depth for test in tests)
    engine = Engine(GGUFFile.open(path), open_backend("auto", threads), n_ctx=n_ctx, kv_type=kv_type)
    with contextlib.ExitStack() as stack:
        programs = {who: stack.enter_context(started(who, path, n_ctx, threads, kv_type)) for who in (OURS, *variants)}
        for test in tests:
            for speed_of in programs.values():  # warms up, and computes the past
                speed_of(test)
            limits = measure_limits(threads)
            turns = [{who: speed_of(test) for who, speed_of in programs.items()} for _ in range(rounds)]
            limits = limits.best_of(measure_limits(threads))
            ours = statistics.median(turn[OURS] for turn in turns)
            medians = {who: statistics.median(turn[who] for turn in turns) for who in variants}
            best = max(medians, key=lambda who: medians[who])
            ratios = [turn[OURS] / turn[best] for turn in turns]
            bound = prefill_kind(engine) if test.is_prefill else "read"
            read = decode_bytes(engine, test.depth + test.n // 2) / test.at_once
            work = prefill_ops(engine) if test.is_prefill else read
            limit = getattr(limits, bound)
            yield {
                "model": path.stem,
                "type": main_type(engine.file),
                "kv_type": kv_type,
                "test": test.name,
                "ours": ours,
                "theirs": medians[best],
                "variant": best,
                "ratio": statistics.median(ratios),
                "ratios": sorted(ratios),
                "bound": bound,
                "fraction": work * ours / 1e9 / limit if limit else None,
                "limits": asdict(limits),
                "date": time.strftime("%Y-%m-%d"),
            }


def line(result: dict[str, Any]) -> str:
    low, high = result["ratios"][0], result["ratios"][-1]
    share = "" if result["fraction"] is None else f"{100 * result['fraction']:.0f}% of {result['bound']}"
    return (
        f"{result['model']} {result['kv_type']} {result['test']:>10}: {result['ours']:7.1f} / {result['theirs']:7.1f} "
        f"tokens/s = {result['ratio']:.2f} ({low:.2f} to {high:.2f}), {share}"
    )


def merged(path: Path, about: dict[str, Any], results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Puts new results into the file at `path`, in place of those of the same test."""

    def key(result: dict[str, Any]) -> tuple[str, ...]:
        return result["model"], result["kv_type"], result["test"]

    old = json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else []
    new = {key(result): result for result in [*old, *results]}
    report = {**about, "results": [new[k] for k in sorted(new)]}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        f"# localcoder and llama.cpp on {report['machine']['cpu']}, {report['threads']} threads",
        "",
        f"llama-cpp-python {report['llama_cpp_python']}; {report['backend']}. Tokens per second, medians; the "
        "ratio's range in parentheses. `pp512`: 512 tokens at once; `tg32@2048`: 32 one by one after 2048 others; "
        "`tg32x4`: four in each step.",
        "",
        "| model | KV | test | localcoder | llama.cpp | ratio | of the limit |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for r in report["results"]:
        share = "" if r["fraction"] is None else f"{100 * r['fraction']:.0f}% of {r['bound']}"
        ratio = f"{r['ratio']:.2f} ({r['ratios'][0]:.2f} to {r['ratios'][-1]:.2f})"
        cells = (r["model"], r["kv_type"], r["test"], f"{r['ours']:.1f}", f"{r['theirs']:.1f}", ratio, share)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(report: dict[str, Any], path: Path) -> None:
    """Ratios as bars, one group a test."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    results = report["results"]
    labels = [f"{r['model']} {r['test']}" + (f" KV {r['kv_type']}" if r["kv_type"] != "f16" else "") for r in results]
    figure = Figure(figsize=(8, 0.6 + 0.28 * len(results)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ratios = [r["ratio"] for r in results]
    spread = [[r["ratio"] - r["ratios"][0] for r in results], [r["ratios"][-1] - r["ratio"] for r in results]]
    axes.barh(labels, ratios, xerr=spread, color="#1f5f99", ecolor="#666666", height=0.7)
    axes.axvline(1, color="#1b1b1b", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel("tokens per second, localcoder / llama.cpp")
    figure.savefig(path, dpi=120)


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--tests", default=TESTS, show_default=True, help="What is measured.")
@click.option("--rounds", default=3, show_default=True, help="Turns that each program gets.")
@click.option("--threads", type=int, help="Threads of each program.")
@click.option("--kv-type", default="f16", show_default=True, help="Type of both KV caches.")
@click.option("--variants", default=",".join(THEIRS), show_default=True, help="Ways of llama.cpp.")
@click.option("--out", type=click.Path(path_type=Path), help="The results, .json.")
@click.option("--serve", "who", hidden=True)
@click.option("--n-ctx", type=int, hidden=True)
def main(
    files: tuple[Path, ...],
    tests: str,
    rounds: int,
    threads: int | None,
    kv_type: str,
    variants: str,
    out: Path | None,
    who: str | None,
    n_ctx: int | None,
) -> None:
    """Compare the speed of localcoder and llama.cpp."""
    from localcoder.backends.threads import thread_count

    n_threads = thread_count(threads)
    if who:
        assert n_ctx
        if who == OURS:
            serve_ours(files[0], n_ctx, n_threads, kv_type)
        elif who == OPENVINO:
            serve_openvino(files[0], n_threads)
        else:
            serve_theirs(files[0], n_ctx, n_threads, kv_type, who)
        return
    from importlib.metadata import version

    from localcoder.backends.c import CBackend
    from localcoder.measure.machine import this_machine

    machine = this_machine()
    backend = CBackend(n_threads)
    slug = re.sub(r"[^a-z0-9]+", "-", f"{machine.cpu} {backend.isa}".lower()).strip("-")  # some name no model
    out = out or RESULTS / f"speed-{slug}-{n_threads}-threads.json"
    about = {
        "machine": asdict(machine),
        "threads": n_threads,
        "backend": backend.description,
        "llama_cpp_python": version("llama-cpp-python"),
    }
    backend.close()
    for path in files:
        for result in compare(
            path, [test_of(t) for t in tests.split(",")], rounds, n_threads, kv_type, variants.split(",")
        ):
            click.echo(line(result))
            report = merged(out, about, [result])
    out.with_suffix(".md").write_text(table(report), encoding="utf-8")
    with contextlib.suppress(ImportError):
        plot(report, out.with_suffix(".png"))
    if out.parent == RESULTS:
        write_readme()


if __name__ == "__main__":
    main()
