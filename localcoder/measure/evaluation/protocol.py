"""What a model is asked, word for word as for the figures of the DeepSeek-Coder paper, and those figures.

From the evaluation folder of DeepSeek-Coder's repository: greedy, 4096 tokens of input; a base model continues the
prompt without the white space at its ends, 500 tokens at most; MBPP shows it three solved examples; an instruct model
gets a chat prompt and answers with a code block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from localcoder.coder import Coder
from localcoder.errors import OptionError
from localcoder.measure.evaluation.languages import BY_NAME
from localcoder.measure.evaluation.tasks import MBPP_SHOTS, Task
from localcoder.tokenizer.chat import chat_prompt

MAX_INPUT = 4096
MAX_OUTPUT = 500
_MAX_ANSWER = {"humaneval": 1024, "mbpp": 512}  # of an instruct model, which also explains
MAX_CTX = MAX_INPUT + max(_MAX_ANSWER.values())
_FENCE_NAMES = {"cs": "csharp", "cpp": "cpp", "sh": "bash"}  # of code blocks, where not the language's name

_INSTRUCTION = """\
Please continue to complete the function. You are not allowed to modify the given code and do the completion only. \
Please return all completed function in a codeblock. Here is the given code to do completion:
```{language}
{prompt}
```"""
_MBPP_QUESTION = (
    "You are an expert Python programmer, and here is your task: {question} "
    "Your code should pass these tests:\n\n{tests}\n[BEGIN]"
)
_MBPP_CHAT = """\
Please refer the given examples and generate a python function for my problem.
Examples are listed as follows:
{shots}

Here is my problem:
{problem}"""
_MBPP_PROBLEM = ">>> Problem:\n{question}\n>>> Test Cases:\n{tests}\n"


@dataclass(frozen=True)
class Request:
    """One text to generate: token ids of the prompt, where to stop, and the most tokens."""

    task: Task
    prompt: Sequence[int]
    stops: tuple[str, ...]
    max_tokens: int


def requests_for(coder: Coder, tasks: Sequence[Task], all_tasks: Sequence[Task]) -> list[Request]:
    """What to ask a model about each of `tasks`.

    Args:
        all_tasks: of the data; MBPP's examples are among them.

    Raises:
        OptionError: the model's context is too short, or the data lack the examples.
    """
    by_id = {task.task_id: task for task in all_tasks}
    shots = [by_id[str(i)] for i in MBPP_SHOTS if str(i) in by_id] if tasks[0].benchmark == "mbpp" else []
    if tasks[0].benchmark == "mbpp" and len(shots) < len(MBPP_SHOTS):
        raise OptionError(f"the data lack the problems {', '.join(map(str, MBPP_SHOTS))}, which are shown as examples")
    return [_request(coder, task, shots) for task in tasks]


def _request(coder: Coder, task: Task, shots: Sequence[Task]) -> Request:
    max_tokens = _MAX_ANSWER[task.benchmark] if coder.is_instruct else MAX_OUTPUT
    n_input = min(MAX_INPUT, coder.n_ctx - max_tokens)
    prompt: list[int] = []
    for n_shots in range(len(shots), -1, -1):
        prompt = _prompt(coder, task, shots[:n_shots])
        if len(prompt) <= n_input:
            break
    if len(prompt) > n_input:
        raise OptionError(
            f"{task.task_id}: {len(prompt)} tokens of prompt and {max_tokens} of answer do not fit in "
            f"a context of {coder.n_ctx}"
        )
    return Request(task, prompt, () if coder.is_instruct else task.stops, max_tokens)


def _prompt(coder: Coder, task: Task, shots: Sequence[Task]) -> list[int]:
    if coder.is_instruct:
        text = _mbpp_chat(task, shots) if task.benchmark == "mbpp" else _instruction(task)
        return chat_prompt(coder.tokenizer, [{"role": "user", "content": text}])
    if task.benchmark == "mbpp":
        solved = [f"{_question(shot)}\n{_tidy(shot)}\n[DONE]\n" for shot in shots]
        return coder.tokenize("".join(solved) + _question(task))
    return coder.tokenize(task.prompt.strip())


def _instruction(task: Task) -> str:
    name = _FENCE_NAMES.get(task.language, BY_NAME[task.language].title.lower())
    return _INSTRUCTION.format(language=name, prompt=task.prompt.strip())


def _question(task: Task) -> str:
    return _MBPP_QUESTION.format(question=task.question, tests="\n".join(task.examples))


def _mbpp_chat(task: Task, shots: Sequence[Task]) -> str:
    solved = [
        f"- Example {i}:\n{_problem(shot)}\n>>> Code:\n```python\n{_tidy(shot)}\n```" for i, shot in enumerate(shots, 1)
    ]
    return _MBPP_CHAT.format(shots="\n\n".join(solved), problem=_problem(task))


def _problem(task: Task) -> str:
    return _MBPP_PROBLEM.format(question=task.question.strip(), tests="\n".join(task.examples))


def _tidy(task: Task) -> str:
    return (task.solution or "").replace("\r", "").replace("\t", "    ")


# ---------------------------------------------------------------- published figures, pass@1 in percent

# The paper's (https://arxiv.org/abs/2401.14196); the repository's pages have 78.9 and 46.8 where this has 78.6
# and 46.2.
_LANGUAGES = ("python", "cpp", "java", "php", "ts", "cs", "sh", "js")
_HUMANEVAL = {
    ("1.3B", "base"): (34.8, 31.1, 32.3, 24.2, 28.9, 36.7, 10.1, 28.6),
    ("5.7B", "base"): (48.7, 45.3, 41.1, 39.7, 44.7, 41.1, 27.8, 42.2),
    ("6.7B", "base"): (49.4, 50.3, 43.0, 38.5, 49.7, 50.0, 28.5, 48.4),
    ("33B", "base"): (56.1, 58.4, 51.9, 44.1, 52.8, 51.3, 32.3, 55.3),
    ("1.3B", "instruct"): (65.2, 45.3, 51.9, 45.3, 59.7, 55.1, 12.7, 52.2),
    ("6.7B", "instruct"): (78.6, 63.4, 68.4, 68.9, 67.2, 72.8, 36.7, 72.7),
    ("33B", "instruct"): (79.3, 68.9, 73.4, 72.7, 67.9, 74.1, 43.0, 73.9),
}
_MBPP = {
    ("1.3B", "base"): 46.2, ("5.7B", "base"): 57.2, ("6.7B", "base"): 60.6, ("33B", "base"): 66.0,
    ("1.3B", "instruct"): 49.4, ("6.7B", "instruct"): 65.4, ("33B", "instruct"): 70.0,
}  # fmt: skip
# (layers, width, key-value heads) of the family's members
_SIZES: Mapping[tuple[int, int, int], str] = {
    (24, 2048, 16): "1.3B", (32, 4096, 1): "5.7B", (32, 4096, 32): "6.7B", (62, 7168, 8): "33B",
}  # fmt: skip


@dataclass(frozen=True)
class Published:
    """A published pass@1, 0 to 1, and of which member of the family."""

    member: str
    pass_at_1: float


def published(coder: Coder, benchmark: str, language: str) -> Published | None:
    """The published figure of the member of the family that has this model's shape; None if there is none."""
    hp = coder.engine.hyperparameters
    size = _SIZES.get((hp.n_layer, hp.n_embd, hp.n_head_kv))
    kind = "instruct" if coder.is_instruct else "base"
    if size is None:
        return None
    if benchmark == "mbpp":
        found = _MBPP.get((size, kind))
    else:
        row = _HUMANEVAL.get((size, kind))
        found = None if row is None else row[_LANGUAGES.index(language)]
    return None if found is None else Published(f"{size} {kind}", round(found / 100, 3))
