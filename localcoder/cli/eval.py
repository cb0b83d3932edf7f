"""`localcoder eval`: how many programming problems a model solves."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from localcoder.cli.common import echo_json, json_option, step_progress
from localcoder.errors import OptionError, printable

if TYPE_CHECKING:
    from localcoder.measure.evaluation.execution import Outcome
    from localcoder.measure.evaluation.tasks import Sample, Task

log = logging.getLogger("localcoder")

OWN = "canonical"
_MAX_WORKERS = 256
_GUARDS = {"network": "reach the network", "processes": "signal other processes", "files": "touch other files"}


@click.command()
@click.argument("benchmark", type=click.Choice(["humaneval", "mbpp"]))
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="The problems: a file, or the folder of all."
)
@click.option(
    "--language", help="HumanEval's: python, cpp, java, js, ts, php, cs or sh.  [default: the file's, or python]"
)
@click.option("--completions", metavar="FILE.jsonl|canonical", help="Only run these: lines of task_id and completion.")
@click.option(
    "--workers", type=click.IntRange(1, _MAX_WORKERS), help="Programs run at a time.  [default: the cores at hand]"
)
@click.option(
    "--timeout", type=click.FloatRange(0.1, 3600), default=10.0, show_default=True,
    help="Seconds of processor time a program may take; by the clock, three times as many.",
)  # fmt: skip
@json_option
def eval(
    benchmark: str,
    data: Path,
    language: str | None,
    completions: str | None,
    workers: int | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Measure how many programming problems a model solves."""
    from localcoder.measure.evaluation.tasks import own_solutions, read_completions

    path, tasks = _tasks(benchmark, data, language)
    if completions is None:
        raise click.UsageError("--completions is missing")
    samples = own_solutions(tasks, path) if completions == OWN else read_completions(Path(completions), tasks)
    result = _execute(samples, workers, timeout)
    _show(result, {"benchmark": benchmark, "language": tasks[0].language, "data": str(path)}, as_json)


def _tasks(benchmark: str, data: Path, language: str | None) -> tuple[Path, list[Task]]:
    from localcoder.measure.evaluation.tasks import data_file, language_named, read_tasks

    wanted = None if language is None else language_named(language)
    path = data_file(data, benchmark, wanted)  # type: ignore[arg-type]
    tasks = read_tasks(path, benchmark)  # type: ignore[arg-type]
    others = {task.language for task in tasks} - {wanted or tasks[0].language}
    if others:
        raise OptionError(f"{path}: has problems in {', '.join(sorted(others))}; --language is {wanted or 'not given'}")
    return path, tasks


@dataclass
class Result:
    """Samples and what became of each, in the same order."""

    samples: Sequence[Sample]
    outcomes: list[Outcome]

    def summary(self) -> dict[str, Any]:
        from localcoder.measure.evaluation.scoring import mean_pass_at_k

        by_task: dict[str, list[Any]] = {}
        for sample, outcome in zip(self.samples, self.outcomes):
            by_task.setdefault(sample.task.task_id, []).append(outcome.name)
        counts = Counter(outcome.name for outcome in self.outcomes)
        figures = {f"pass@{k}": mean_pass_at_k(by_task, k) for k in (1, 10, 100)}
        return {
            **{name: value for name, value in figures.items() if value is not None or name == "pass@1"},
            "passed": counts["passed"],
            "failed": len(self.outcomes) - counts["passed"] - counts["skipped"],
            "skipped": counts["skipped"],
            "tasks": [
                {"task_id": sample.task.task_id, "outcome": outcome.name, "detail": printable(outcome.detail)}
                for sample, outcome in zip(self.samples, self.outcomes)
            ],
        }


def _execute(samples: Sequence[Sample], workers: int | None, timeout_s: float) -> Result:
    """Runs the samples' programs, with a bar."""
    from localcoder.backends.threads import usable_cores
    from localcoder.measure.evaluation.execution import Outcome, run_samples

    outcomes = [Outcome("skipped")] * len(samples)
    counts: Counter[str] = Counter()
    with step_progress("running") as progress:

        def note(number: int, outcome: Outcome) -> None:
            outcomes[number] = outcome
            counts[outcome.name] += 1
            n_run = counts.total() - counts["skipped"]
            progress(counts.total(), len(samples), f"pass@1 {counts['passed'] / n_run:.1%}" if n_run else "")

        run_samples(iter(samples), workers=workers or usable_cores(), timeout_s=timeout_s, on_outcome=note)
    _warn_of_missing_guards(outcomes)
    return Result(samples, outcomes)


def _warn_of_missing_guards(outcomes: Sequence[Outcome]) -> None:
    ran = [outcome for outcome in outcomes if outcome.name != "skipped"]
    missing = [text for guard, text in _GUARDS.items() if any(guard not in outcome.guards for outcome in ran)]
    if missing:
        log.warning("on this system the programs could %s", ", ".join(missing))


def _show(result: Result, about: dict[str, Any], as_json: bool) -> None:
    summary = result.summary()
    if as_json:
        echo_json({**about, **summary})
        return
    for row in summary["tasks"]:
        if row["outcome"] not in ("passed", "skipped"):
            click.echo(f"{printable(row['task_id'])}: {row['outcome']}: {row['detail']}", err=True)
    skipped = next((o.detail for o in result.outcomes if o.name == "skipped"), None)
    if skipped:
        click.echo(f"{summary['skipped']} skipped: {skipped}", err=True)
    n_run = summary["passed"] + summary["failed"]
    figures = "  ".join(
        f"{name} {value:.1%}" for name, value in summary.items() if name.startswith("pass@") and value is not None
    )
    click.echo(f"{figures or 'nothing was run'}  ({summary['passed']} of {n_run} passed)")
