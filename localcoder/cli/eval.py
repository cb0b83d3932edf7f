"""`localcoder eval`: how many programming problems a model solves."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from localcoder.cli.common import (
    MODEL_FILE,
    byte_progress,
    device_option,
    echo_json,
    gpu_layers_option,
    json_option,
    open_coder,
    step_progress,
    threads_option,
)
from localcoder.errors import OptionError, printable

if TYPE_CHECKING:
    from localcoder.files.atomic import OutputFile
    from localcoder.measure.evaluation.tasks import Sample, Task
    from localcoder.measure.evaluation.writing import Plan

log = logging.getLogger("localcoder")

OWN = "canonical"
_MAX_WORKERS = 256
_N_HOLES = 100  # of a kind


@click.command()
@click.argument("benchmark", type=click.Choice(["humaneval", "mbpp", "fim"]))
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    help="The problems: a file, the folder of all, or OWNER/NAME:PATH.jsonl on the hub; for fim, a folder of sources.",
)
@click.option(
    "--language", help="HumanEval's: python, cpp, java, js, ts, php, cs or sh.  [default: the file's, or python]"
)
@click.option(
    "-m", "--model", "models", multiple=True, type=MODEL_FILE, metavar="FILE",
    envvar="LOCALCODER_MODEL",
    help="A GGUF file; may be repeated.  [default: the embedded demonstration model]",
)  # fmt: skip
@click.option(
    "--completions", metavar="FILE.jsonl|canonical", help="Run these (lines of task_id, completion); no model."
)
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="OUT.jsonl",
    help="Keep what the model writes; what is there already is not written again. A folder for several models.",
)  # fmt: skip
@click.option("--no-execute", is_flag=True, help="Write completions only (needs --output).")
@click.option(
    "--limit",
    type=click.IntRange(1),
    help="Only the first problems; for fim, holes of each kind.  [default there: 100]",
)
@click.option("--samples", type=click.IntRange(1, 1000), default=1, show_default=True, help="Completions of a problem.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0: greedy, as the published figures.")
@click.option("--seed", type=int, default=0, show_default=True, help="Makes the draws repeatable.")
@click.option("--parallel", type=click.IntRange(1, 64), default=4, show_default=True, help="Texts written at a time.")
@click.option(
    "--workers", type=click.IntRange(1, _MAX_WORKERS), help="Programs run at a time.  [default: the cores at hand]"
)
@click.option(
    "--timeout", type=click.FloatRange(0.1, 3600), default=10.0, show_default=True,
    help="Seconds of processor time a program may take; by the clock, three times as many.",
)  # fmt: skip
@click.option(
    "--results", type=click.Path(path_type=Path), metavar="OUT.jsonl",
    help="Write every completion with its outcome, one JSON object a line.",
)  # fmt: skip
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="OUT.png|svg", help="Draw size against pass@1 of all models."
)
@threads_option
@device_option
@gpu_layers_option
@json_option
def eval(
    benchmark: str,
    data: Path,
    language: str | None,
    models: tuple[Path, ...],
    completions: str | None,
    output: Path | None,
    no_execute: bool,
    limit: int | None,
    samples: int,
    temperature: float,
    seed: int,
    parallel: int,
    workers: int | None,
    timeout: float,
    results: Path | None,
    plot: Path | None,
    threads: int | None,
    device: str,
    gpu_layers: int | None,
    as_json: bool,
) -> None:
    """Measure how many programming problems a model solves.

    HumanEval in eight languages, or MBPP with three examples, as for the figures of the DeepSeek-Coder paper. What the
    model writes is run in a sandbox: without network where the system allows that, in a folder of its own, with limits
    on time and memory. A language whose compiler is missing is skipped.

    --data takes the files of DeepSeek-Coder's evaluation folder (humaneval-LANGUAGE.jsonl, mbpp.jsonl), and others that
    are laid out as they are; one that a data set on the Hugging Face hub has is fetched once.

    fim leaves lines, blocks of lines and random spans out of the source files in a folder, and compares what the model
    writes there: the same text, similarity, and whether a Python file still parses.
    """
    from localcoder.measure.evaluation.writing import Plan, context_for

    for model in () if completions else models:  # what is wrong with one shows now, not after hours of another's work
        context_for(model)
    if output and len({model.stem for model in models}) < len(models):
        raise click.UsageError("--output names the files after the models, and two of these have the same name")
    if benchmark == "fim":
        if completions or output or no_execute or results or plot or language or samples != 1 or temperature:
            raise click.UsageError(
                "fim takes --data, --model, --limit, --seed, --threads, --device, --gpu-layers and --json only"
            )
        _show_fim(
            data,
            [
                _fill(model, data, limit or _N_HOLES, seed, threads=threads, device=device, gpu_layers=gpu_layers)
                for model in models or (None,)
            ],
            as_json,
        )
        return
    if no_execute and (completions or results or not output):
        raise click.UsageError(
            "--no-execute keeps what a model writes: it needs --output, no --completions or --results"
        )
    if completions and (output or plot or samples != 1):
        raise click.UsageError("--completions takes no --output, --plot or --samples: no model writes anything")
    if samples > 1 and temperature == 0:
        raise click.UsageError("--samples differ only with a --temperature")
    if plot:
        from localcoder.measure.plot import check_plot_target

        check_plot_target(plot)
    from localcoder.files.atomic import OutputFile
    from localcoder.measure.evaluation.tasks import judged_tasks

    path, tasks = _tasks(benchmark, data, language)
    about = {"benchmark": benchmark, "language": tasks[0].language, "data": str(path)}
    with contextlib.nullcontext() if results is None else OutputFile(results) as out:
        execution = None if no_execute else Execution(workers, timeout, out)
        if completions:
            assert execution is not None
            given = _given_completions(completions, tasks, path)[:limit]
            found = [{**about, **execution.run(iter(given), len(given))}]
        else:
            plan = Plan(judged_tasks(tasks)[:limit], tasks, samples, temperature, seed, parallel)
            where = {"threads": threads, "device": device, "gpu_layers": gpu_layers}
            found = [
                {**about, **_run_model(model, plan, execution, _output_of(output, model, len(models)), **where)}
                for model in models or (None,)
            ]
    if plot and execution is not None:
        from localcoder.measure.plot import plot_pass_rates

        plot_pass_rates(found, plot, name=f"{benchmark} ({tasks[0].language})")
    _show(found, as_json)


def _tasks(benchmark: str, data: Path, language: str | None) -> tuple[Path, list[Task]]:
    from localcoder.measure.evaluation.tasks import data_file, language_named, read_tasks

    wanted = None if language is None else language_named(language)
    path = data_file(_local(data), benchmark, wanted)  # type: ignore[arg-type]
    tasks = read_tasks(path, benchmark)  # type: ignore[arg-type]
    others = {task.language for task in tasks} - {wanted or tasks[0].language}
    if others:
        raise OptionError(f"{path}: has problems in {', '.join(sorted(others))}; --language is {wanted or 'not given'}")
    return path, tasks


def _local(data: Path) -> Path:
    """`data`, or the file on the hub that it names, fetched."""
    from localcoder.store.datasets import fetch_dataset_file, parse_dataset_file

    remote = None if data.exists() else parse_dataset_file(data.as_posix())
    if remote is None:
        return data
    with byte_progress(str(remote)) as progress:
        return fetch_dataset_file(remote, progress)


def _given_completions(source: str, tasks: Sequence[Task], path: Path) -> list[Sample]:
    from localcoder.measure.evaluation.tasks import own_solutions, read_completions

    return own_solutions(tasks, path) if source == OWN else read_completions(Path(source), tasks)


@dataclass(frozen=True)
class Execution:
    """How programs are run, and where every completion goes with its outcome."""

    workers: int | None
    timeout_s: float
    results: OutputFile | None

    def run(self, samples: Iterator[Sample], n_samples: int, **about: Any) -> dict[str, Any]:
        """Runs samples as they come, with a bar; returns the figures. `about` comes first in every result's line."""
        from localcoder.backends.threads import usable_cores
        from localcoder.measure.evaluation.results import evaluate, missing_guards

        with step_progress("pass@1") as progress:

            def note(n_done: int, pass_rate: float | None) -> None:
                progress(n_done, n_samples, "" if pass_rate is None else f"{pass_rate:.1%}")

            workers = self.workers or usable_cores()
            results = evaluate(samples, workers=workers, timeout_s=self.timeout_s, progress=note)
        missing = missing_guards(results.outcomes)
        if missing:
            log.warning("on this system the programs could %s", ", ".join(sorted(missing)))
        if self.results is not None:
            for row in results.rows():
                self.results.write(json.dumps({**about, **row}).encode() + b"\n")
        return results.summary()


def _run_model(
    model: Path | None, plan: Plan, execution: Execution | None, output: Path | None, **options: Any
) -> dict[str, Any]:
    """Lets one model write the completions, and runs them unless `execution` is None."""
    from localcoder.coder import embedded_model
    from localcoder.measure.evaluation.protocol import published
    from localcoder.measure.evaluation.writing import context_for, write_samples

    with contextlib.ExitStack() as stack:
        path = model or stack.enter_context(embedded_model())
        n_ctx = context_for(path)
        coder = stack.enter_context(open_coder(path, n_ctx=n_ctx, n_sequences=plan.n_parallel + 1, **options))
        samples = write_samples(coder, plan, output)
        known = published(coder, plan.tasks[0].benchmark, plan.tasks[0].language)
        about = {
            "model": str(path),
            "file_bytes": path.stat().st_size,
            "protocol": "instruct" if coder.is_instruct else "base",
            "published": None if known is None else asdict(known),
        }
        if execution is not None:
            return {**about, **execution.run(samples, plan.n_completions, model=str(path))}
        with step_progress("writing") as progress:
            for n_done, _ in enumerate(samples, 1):
                progress(n_done, plan.n_completions, "")
        return {**about, "completions": plan.n_completions, "output": str(output)}


def _output_of(output: Path | None, model: Path | None, n_models: int) -> Path | None:
    """The file for one model's completions: `output`, or for several models one of theirs in the folder `output`."""
    if output is None or model is None or n_models == 1:
        return output
    output.mkdir(parents=True, exist_ok=True)
    return output / f"{model.stem}.jsonl"


def _show(results: Sequence[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        echo_json(results[0] if len(results) == 1 else {"models": results})
        return
    for result in results:
        for row in result.get("tasks", ()) if len(results) == 1 else ():
            if row["outcome"] not in ("passed", "skipped"):
                click.echo(f"{printable(row['task_id'])}: {row['outcome']}: {row['detail']}", err=True)
        skipped = [row["detail"] for row in result.get("tasks", ()) if row["outcome"] == "skipped"]
        if skipped:
            click.echo(f"{len(skipped)} skipped: {skipped[0]}", err=True)
    if len(results) == 1 or "completions" in results[0]:
        for result in results:
            click.echo(_line(result))
    else:
        click.echo(_table(results))


def _line(result: dict[str, Any]) -> str:
    name = f": {printable(result['model'])}" if "model" in result else ""
    if "completions" in result:
        return f"{result['completions']} completions in {printable(result['output'])}{name}"
    figures = [f"{key} {value:.1%}" for key, value in result.items() if key.startswith("pass@") and value is not None]
    counts = f"({result['passed']} of {result['passed'] + result['failed']} passed)"
    size = f"  {result['file_bytes'] / 1e9:.3g} GB" if "file_bytes" in result else ""
    known = result.get("published")
    compared = f"  published for {known['member']}: {known['pass_at_1']:.1%}" if known else ""
    return f"{'  '.join(figures) or 'nothing was run'}  {counts}{compared}{size}{name}"


def _table(results: Sequence[dict[str, Any]]) -> str:
    """A row for each model, as the figures of its kind stand in papers."""
    rates = [key for key in results[0] if key.startswith("pass@")]
    rows = [[*rates, "passed", "published", "size", "file"]]
    for result in results:
        known = result["published"]
        rows.append(
            [
                *("-" if result.get(rate) is None else f"{result[rate]:.1%}" for rate in rates),
                f"{result['passed']} of {result['passed'] + result['failed']}",
                f"{known['pass_at_1']:.1%} ({known['member']})" if known else "-",
                f"{result['file_bytes'] / 1e9:.3g} GB",
                printable(result["model"]),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(map(str.rjust, row[:-1], widths)) + "  " + row[-1] for row in rows]
    return "\n".join(lines)


def _fill(model: Path | None, folder: Path, n_each: int, seed: int, **where: Any) -> dict[str, Any]:
    """Lets a model fill holes in the sources of a folder, one after another."""
    from localcoder.coder import embedded_model
    from localcoder.measure.evaluation.fim import N_CTX, fill, make_holes, read_sources, summarize
    from localcoder.measure.evaluation.writing import context_for

    holes = make_holes(read_sources(folder), n_each, seed)
    with contextlib.ExitStack() as stack:
        path = model or stack.enter_context(embedded_model())
        n_ctx = min(N_CTX, context_for(path))
        coder = stack.enter_context(open_coder(path, n_ctx=n_ctx, **where))
        progress = stack.enter_context(step_progress("filling"))
        filled = []
        for result in fill(coder, holes):
            filled.append(result)
            exact = sum(f.is_exact for f in filled) / len(filled)
            progress(len(filled), len(holes), f"exact {exact:.1%}")
        return {"model": str(path), "file_bytes": path.stat().st_size, "holes": [asdict(f) for f in summarize(filled)]}


def _show_fim(data: Path, results: Sequence[dict[str, Any]], as_json: bool) -> None:
    about = {"benchmark": "fim", "data": str(data)}
    if as_json:
        echo_json({**about, **results[0]} if len(results) == 1 else {**about, "models": results})
        return
    click.echo(f"{'holes':<12} {'exact':>7} {'similarity':>10} {'parses':>7}  file")
    for result in results:
        for row in result["holes"]:
            parses = "-" if row["parses"] is None else f"{row['parses']:.1%}"
            figures = f"{row['exact_match']:>7.1%} {row['edit_similarity']:>10.3f} {parses:>7}"
            click.echo(f"{row['n_holes']:>5} {row['kind']:<6} {figures}  {printable(result['model'])}")
