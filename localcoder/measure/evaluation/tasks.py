"""The problems, read from the published files: JSON lines, one problem each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from localcoder.errors import FileError, OptionError
from localcoder.files.json_reader import read_text

Benchmark = Literal["humaneval", "mbpp"]

LANGUAGES = ("python", "cpp", "java", "js", "ts", "php", "cs", "sh")
_ALIASES = {
    "py": "python", "c++": "cpp", "javascript": "js", "typescript": "ts", "c#": "cs", "csharp": "cs", "bash": "sh",
}  # fmt: skip
# Where the data names none; these are the ones the published figures were made with.
_PYTHON_STOPS = ("\ndef", "\nclass", "\nif", "\n#", "\nprint")
_MORE_STOPS = {"ts": ("\nexport", "\nimport", "\nconsole.log")}
_MAX_BYTES = 64 << 20
# MBPP: the problems that count, and those that are shown as examples.
MBPP_TESTED = range(11, 511)
MBPP_SHOTS = (2, 3, 4)


@dataclass(frozen=True)
class Task:
    """One problem.

    Attributes:
        task_id: as the data has it.
        prompt: code to be continued, which ends inside the function; MBPP: empty.
        function: the name of the function that is asked for; MBPP: None.
        test: what follows the completed function in the program.
        stops: a completion ends before the first of these.
        solution: the data's own, where it has one.
        question: MBPP: the problem in words.
        examples: MBPP: assertions that the question shows.
    """

    benchmark: Benchmark
    language: str
    task_id: str
    prompt: str
    function: str | None
    test: str
    stops: tuple[str, ...]
    solution: str | None
    question: str = ""
    examples: tuple[str, ...] = ()


def language_named(name: str) -> str:
    """One of LANGUAGES, by any of its usual names.

    Raises:
        OptionError: there is none of that name.
    """
    found = _ALIASES.get(name.lower(), name.lower())
    if found not in LANGUAGES:
        raise OptionError(f"no language {name!r}; choose from {', '.join(LANGUAGES)}")
    return found


def data_file(data: Path, benchmark: Benchmark, language: str | None) -> Path:
    """The file of a benchmark: `data` itself, or the one of its published name in the folder `data`."""
    if not data.is_dir():
        return data
    return data / ("mbpp.jsonl" if benchmark == "mbpp" else f"humaneval-{language or 'python'}.jsonl")


def read_tasks(path: Path, benchmark: Benchmark) -> list[Task]:
    """The problems of a file, in its order.

    Raises:
        FileError: it cannot be read, or is not the benchmark's data.
    """
    make = _mbpp_task if benchmark == "mbpp" else _humaneval_task
    tasks: list[Task] = []
    seen: set[str] = set()
    for number, row in read_rows(path):
        try:
            task = make(row)
        except (KeyError, TypeError, IndexError, OptionError) as error:
            problem = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise FileError(path, f"line {number} is no {benchmark} problem: {problem}") from None
        if task.task_id in seen:
            raise FileError(path, f"line {number}: the problem {task.task_id} occurs twice")
        seen.add(task.task_id)
        tasks.append(task)
    if not tasks:
        raise FileError(path, f"holds no problems; expected one {benchmark} problem a line")
    return tasks


def read_rows(path: Path, data: bytes | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines, with their line numbers; empty lines are left out.

    Args:
        data: what is in the file, where that is known already.

    Raises:
        FileError: it cannot be read, or a line is no JSON object.
    """
    # Not splitlines: JSON strings may hold what that takes for the end of a line.
    text = read_text(path, _MAX_BYTES, FileError) if data is None else data.decode("utf-8", errors="replace")
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise FileError(path, f"line {number} is not a JSON object")
        yield number, row


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row[name]
    if not isinstance(value, str):
        raise TypeError(f"{name} is not a text")
    return value


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        raise TypeError(f"{name} is not a list of texts")
    return tuple(value)


def _humaneval_task(row: Mapping[str, Any]) -> Task:
    language = language_named(_text(row, "language") if "language" in row else "python")
    prompt = _text(row, "prompt")
    stops = _texts(row.get("stop_tokens") or [], "stop_tokens") + _MORE_STOPS.get(language, ())
    if language == "python":
        function = re.findall(r"^def\s+(\w+)", prompt, re.MULTILINE)[-1]
        stops = stops or _PYTHON_STOPS
    else:
        function = re.findall(r"(\w+)\s*\(", prompt.rstrip().split("\n")[-1])[0]
    solution = _text(row, "canonical_solution") if "canonical_solution" in row else None
    return Task("humaneval", language, _text(row, "task_id"), prompt, function, _text(row, "test"), stops, solution)


def _mbpp_task(row: Mapping[str, Any]) -> Task:
    examples = _texts(row["test_list"], "test_list")
    test = "\n".join([row.get("test_setup_code") or "", *examples])
    solution = _text(row, "code")
    return Task(
        "mbpp", "python", str(row["task_id"]), "", None, test, ("[DONE]",), solution, _text(row, "text"), examples
    )


def judged_tasks(tasks: Sequence[Task]) -> list[Task]:
    """Those that a model is judged by: of MBPP its test split."""
    return [task for task in tasks if task.benchmark != "mbpp" or int(task.task_id) in MBPP_TESTED]


@dataclass(frozen=True)
class Sample:
    """One completion of one problem."""

    task: Task
    completion: str


def read_completions(path: Path, tasks: Sequence[Task]) -> list[Sample]:
    """Completions from a file with `task_id` and `completion` in each line.

    An id may lack the benchmark's name or have another one before its number: 12, "12", "MBPP/12", "HumanEval/12".

    Raises:
        FileError: it cannot be read, a line lacks one of the two, or no problem has that id.
    """
    by_id = {task.task_id: task for task in tasks}
    by_number = {task.task_id.rpartition("/")[2]: task for task in tasks}
    samples = []
    for number, row in read_rows(path):
        if "task_id" not in row or not isinstance(row.get("completion"), str):
            raise FileError(path, f"line {number} lacks task_id or completion (a text)")
        name = str(row["task_id"])
        task = by_id.get(name) or by_number.get(name.rpartition("/")[2])
        if task is None:
            raise FileError(path, f"line {number}: the data have no problem {name!r}")
        samples.append(Sample(task, row["completion"]))
    if not samples:
        raise FileError(path, "holds no completions")
    return samples


def own_solutions(tasks: Sequence[Task], path: Path) -> list[Sample]:
    """The data's own solutions as completions.

    Raises:
        FileError: the data have none.
    """
    samples = [Sample(task, task.solution) for task in tasks if task.solution is not None]
    if not samples:
        raise FileError(path, "has no solutions of its own (only HumanEval in Python and MBPP do)")
    return samples
