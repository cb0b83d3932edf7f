"""Letting a model write completions, kept in a file as they come, so that an interrupted run goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localcoder.coder import Coder
from localcoder.errors import FileError, OutputError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.measure.evaluation.generation import BatchGenerator
from localcoder.measure.evaluation.protocol import MAX_CTX, requests_for
from localcoder.measure.evaluation.tasks import Sample, Task, read_rows
from localcoder.model.hyperparameters import read_hyperparameters
from localcoder.session.options import SamplingOptions

MAX_SAMPLES = 1000  # of a problem


@dataclass(frozen=True)
class Plan:
    """What is to be written: `n_samples` completions of each of `tasks`, `n_parallel` at a time.

    Attributes:
        all_tasks: of the data; the examples that are shown are among them.
        temperature: 0 is greedy.
        seed: makes the draws repeatable.
    """

    tasks: Sequence[Task]
    all_tasks: Sequence[Task]
    n_samples: int
    temperature: float
    seed: int
    n_parallel: int

    @property
    def n_completions(self) -> int:
        return len(self.tasks) * self.n_samples


def context_for(path: Path) -> int:
    """The context that the problems need, as far as the model of a file was trained for it."""
    return min(MAX_CTX, read_hyperparameters(GGUFFile.open(path)).n_ctx_train)


def write_samples(coder: Coder, plan: Plan, output: Path | None) -> Iterator[Sample]:
    """Yields completions as they are written; first those that are in `output` already, to which the others are added.

    Raises:
        FileError: `output` holds something else.
        OutputError: it cannot be written.
        OptionError: the context is too short for a problem; see also `SamplingOptions`.
    """
    made_by = {
        "model": coder.path.name,
        "model_bytes": coder.path.stat().st_size,
        "temperature": plan.temperature,
        "seed": plan.seed,
    }
    kept = {} if output is None else _read_kept(output, made_by)
    wanted = [(task, i) for task in plan.tasks for i in range(plan.n_samples)]
    yield from (Sample(task, kept[task.task_id, i]) for task, i in wanted if (task.task_id, i) in kept)
    missing = [(task, i) for task, i in wanted if (task.task_id, i) not in kept]
    if not missing:
        return
    requests = {request.task.task_id: request for request in requests_for(coder, plan.tasks, plan.all_tasks)}
    numbers = {task.task_id: number for number, task in enumerate(plan.all_tasks)}

    def options(task: Task, sample: int) -> SamplingOptions:
        seed = (plan.seed * MAX_SAMPLES + sample) * len(numbers) + numbers[task.task_id]
        # Of all filters only the nucleus, as for the published figures.
        return SamplingOptions(temperature=plan.temperature, top_k=0, top_p=0.95, seed=seed)

    work = [(requests[task.task_id], options(task, i)) for task, i in missing]
    for written in BatchGenerator(coder, plan.n_parallel).generate(work):
        task, i = missing[written.number]
        if output is not None:
            row = {"task_id": task.task_id, "sample": i, "completion": written.text, **made_by}
            _write(output, json.dumps(row).encode() + b"\n", "ab")
        yield Sample(task, written.text)


def _read_kept(output: Path, made_by: dict[str, Any]) -> dict[tuple[str, int], str]:
    """What a run with the same model and options has left, by task and number of the sample; a line that it did not
    finish is cut off."""
    try:
        data = output.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise FileError(output, (error.strerror or str(error)).lower()) from None
    whole = data[: data.rfind(b"\n") + 1]
    if data and not whole:
        raise FileError(output, "is no file of completions; choose another name for the output")
    kept: dict[tuple[str, int], str] = {}
    for number, row in read_rows(output, whole):
        if {name: row.get(name) for name in made_by} != made_by:
            raise FileError(output, f"line {number} comes from another model or other options; choose another name")
        if not isinstance(row.get("sample"), int) or not isinstance(row.get("completion"), str):
            raise FileError(output, f"line {number} lacks sample or completion")
        kept[str(row.get("task_id")), row["sample"]] = row["completion"]
    if len(whole) < len(data):
        _write(output, whole, "wb")
    return kept


def _write(output: Path, data: bytes, mode: str) -> None:
    try:
        with open(output, mode) as f:
            f.write(data)
    except OSError as error:
        raise OutputError(output, f"cannot be written: {error.strerror or error}") from None
