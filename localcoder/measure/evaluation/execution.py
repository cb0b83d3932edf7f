"""Running completions against their tests, many at a time, and what became of each."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Literal

from localcoder.measure.evaluation.languages import BY_NAME, program_of
from localcoder.measure.evaluation.tasks import Sample, Task
from localcoder.measure.sandbox.limits import Guard, Limits, Report
from localcoder.measure.sandbox.sandbox import Sandbox

OutcomeName = Literal["passed", "failed", "timeout", "memory", "error", "skipped"]

_OUT_OF_MEMORY = re.compile(
    r"\bMemoryError\b|std::bad_alloc|OutOfMemory|Allowed memory size|heap out of memory|[Cc]annot allocate memory|"
    r"virtual memory exhausted|Array buffer allocation failed|Invalid (?:array|typed array) length: out of memory"
)
_NAMES_ERROR = re.compile(r"(?:Error|Exception|\berror)\b.*:|terminate called|[Ss]yntax error")
_KILLED = -9
_WALL_FACTOR = 3  # clock over processor time: other work on the machine must fail no program
_MAX_DETAIL = 300


@dataclass(frozen=True)
class Outcome:
    """What became of a completion.

    Attributes:
        name: "passed"; "failed": a test found a wrong result, or was never come to; "timeout"; "memory"; "error": it
            does not compile, or ended in any other way; "skipped": this machine lacks the language's tools.
        detail: why, in a line.
        guards: what was kept from the program besides the limits.
    """

    name: OutcomeName
    detail: str = ""
    guards: Sequence[Guard] = ()


def limits_for(timeout_s: float) -> Limits:
    """Limits of a program that may take `timeout_s` of processor time, and three times as long by the clock."""
    return Limits(cpu_s=timeout_s, wall_s=_WALL_FACTOR * timeout_s)


def run_sample(sandbox: Sandbox, sample: Sample, limits: Limits) -> Outcome:
    """Runs one completion.

    Raises:
        SandboxError: there is no safe way to run it here.
    """
    language = BY_NAME[sample.task.language]
    missing = language.missing_tools()
    if missing:
        return Outcome("skipped", f"{language.title} needs {' and '.join(missing)}, not found on the PATH")
    word = secrets.token_hex(12)
    program = program_of(sample.task, sample.completion, word, limits)
    try:
        reports = sandbox.run(program.commands, program.files)
    except UnicodeEncodeError:
        return Outcome("error", "the completion is not Unicode text")
    return judge(sample.task, reports, n_commands=len(program.commands), word=word)


def judge(task: Task, reports: Sequence[Report], *, n_commands: int, word: str) -> Outcome:
    """The outcome that the reports of a program's commands amount to."""
    report = reports[-1]
    if report.ending == "time":
        return Outcome("timeout", "it took too long", report.guards)
    if report.ending == "memory":
        return Outcome("memory", "it took too much memory", report.guards)
    if report.ending != "exit":
        reason = {"processes": "it started too many processes", "output": "it printed too much"}
        return Outcome("error", reason.get(report.ending, "it ended the process that watched it"), report.guards)
    if len(reports) < n_commands:
        return Outcome("error", f"it does not compile: {_reason(report.output)}", report.guards)
    is_wrong = BY_NAME[task.language].wrong.search(report.output) is not None
    if report.exit_code == 0 and not is_wrong:
        if word in report.output:
            return Outcome("passed", "", report.guards)
        return Outcome("failed", "it ended before its tests did", report.guards)
    if is_wrong or (task.language == "sh" and report.exit_code == 1):
        return Outcome("failed", "a test found a wrong result", report.guards)
    if report.exit_code == _KILLED or _OUT_OF_MEMORY.search(report.output):
        return Outcome("memory", _reason(report.output), report.guards)
    return Outcome("error", _reason(report.output) or f"exit code {report.exit_code}", report.guards)


def _reason(output: str) -> str:
    """The line that names an error, else the last one."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    naming = [line for line in lines if _NAMES_ERROR.search(line)]
    return (naming or lines or [""])[-1][:_MAX_DETAIL]


def run_samples(
    samples: Iterator[Sample], *, workers: int, timeout_s: float, on_outcome: Callable[[int, Outcome], None]
) -> None:
    """Runs completions as they come, `workers` at a time.

    Args:
        on_outcome: called in this thread with each sample's number and outcome, in the order in which they end.

    Raises:
        SandboxError: there is no safe way to run them here.
    """
    limits = limits_for(timeout_s)
    running: dict[Future[Outcome], int] = {}

    def collect(at_most: int) -> None:
        while len(running) > at_most:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                on_outcome(running.pop(future), future.result())

    with Sandbox() as sandbox:
        threads = ThreadPoolExecutor(workers)
        try:
            for number, sample in enumerate(samples):
                running[threads.submit(run_sample, sandbox, sample, limits)] = number
                collect(2 * workers)
            collect(0)
        finally:
            sandbox.close()  # ends what still runs, so that the threads end, too
            threads.shutdown(cancel_futures=True)
