"""HumanEval and MBPP: what passes and what does not, in every language, and how completions are read."""

# ruff: noqa: E501

from __future__ import annotations

import itertools
import json
import math
import os
import sys

import humaneval_solutions as solutions
import pytest

from localcoder.errors import FileError
from localcoder.measure.evaluation.completions import code_of
from localcoder.measure.evaluation.execution import run_samples
from localcoder.measure.evaluation.languages import BY_NAME
from localcoder.measure.evaluation.scoring import mean_pass_at_k, pass_at_k
from localcoder.measure.evaluation.tasks import (
    Sample,
    Task,
    judged_tasks,
    own_solutions,
    read_completions,
    read_tasks,
)

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="the programs are ended by signals"),
    pytest.mark.skipif("LOCALCODER_BACKEND" in os.environ, reason="the same on every backend"),
]
LANGUAGES = sorted(set(BY_NAME) - {"python"})


def run(samples, timeout_s=10.0):
    """Outcomes, in the samples' order."""
    found = [None] * len(samples)
    run_samples(iter(samples), workers=2, timeout_s=timeout_s, on_outcome=found.__setitem__)
    return found


def names(samples, timeout_s=10.0):
    return [outcome.name for outcome in run(samples, timeout_s)]


def require(language):
    missing = BY_NAME[language].missing_tools()
    if missing:
        pytest.skip(f"{' and '.join(missing)} not found")


def tasks_by_id(shared, language):
    return {
        task.task_id: task for task in read_tasks(shared / "evaluation" / f"humaneval-{language}.jsonl", "humaneval")
    }


PYTHON_TASK = Task(
    "humaneval", "python", "Python/0", 'import math\n\n\ndef area(r: float) -> float:\n    """Of a circle."""\n', "area",
    "def check(f):\n    assert abs(f(2.0) - 12.566370614359172) < 1e-9\n\ncheck(area)",
    ("\ndef", "\nclass", "\nif", "\n#", "\nprint"), None,
)  # fmt: skip
BODY = "    return math.pi * r * r\n"
WHOLE = "def area(r):\n    return math.pi * r ** 2\n"


@pytest.mark.parametrize(
    "completion",
    [
        BODY,
        "\n" + BODY,
        BODY.replace("\n", "\r\n"),
        BODY.strip(),
        "if r < 0:\n    return 0.0\nreturn math.pi * r * r",
        BODY + "\n\ndef unfinished(",
        BODY + "\nprint(area(",
        BODY + "```\nThis is the area.",
        PYTHON_TASK.prompt + BODY,
        PYTHON_TASK.prompt.strip() + "\n" + BODY + "\n\n# Test\nprint(area(",
        WHOLE,
        "from __future__ import annotations\n\n\nPI = 3.141592653589793\n\n\ndef area(r):\n    return half(r) * 2\n\n\n"
        "def half(r):\n    return PI * r * r / 2\n",
        f"Sure, here it is:\n\n{WHOLE}",
        f"{WHOLE}\nIt squares the radius.\n",
        f"Sure:\n\n{WHOLE}\n\ndef half(r):\n    return r / 2\n\n\nHow it works:\n1. It squares the radius.\n",
        f"~~~python\n{WHOLE}~~~\n",
        f"{BODY}<｜end▁of▁sentence｜>",
        f"```python\n{WHOLE}```\n<|EOT|>",
        f"Sure:\n```python\n{WHOLE}```\nIt works.",
        f"First install:\n```sh\npip install x\n```\nthen\n```py\n{WHOLE}```",
        f"```\n{BODY}```",
        f"```python\n{WHOLE}",
        "1. This:\n   ```python\n   def area(r):\n       return math.pi * r * r\n   ```",
    ],
)  # fmt: skip
def test_a_right_answer_in_any_form_passes(completion):
    assert names([Sample(PYTHON_TASK, completion)]) == ["passed"]


@pytest.mark.parametrize(
    ("completion", "outcome"),
    [
        ("    return math.pi * r\n", "failed"),
        ("    return (math.pi\n", "error"),
        (BODY + "    return (", "error"),
        (WHOLE + "    return (", "error"),
        ("    raise ValueError('AssertionError')\n", "error"),
        ("    assert r < 0\n", "failed"),
        ("    while True: pass\n", "timeout"),
        ("    return bytearray(100 << 30)\n", "memory"),
        ("    import os\n    os._exit(0)\n", "failed"),
        ("    raise SystemExit(0)\n", "failed"),
        ("", "error"),
        ("I cannot do that.", "error"),
        ("```python\n```", "error"),
        ("\ud800", "error"),
    ],
)
def test_a_wrong_answer_does_not(completion, outcome):
    (found,) = run([Sample(PYTHON_TASK, completion)], timeout_s=1)
    assert found.name == outcome
    assert found.detail


def test_own_solutions_pass(shared):
    for benchmark, name, step in (("humaneval", "humaneval-python", 4), ("mbpp", "mbpp", 24)):
        path = shared / "evaluation" / f"{name}.jsonl"
        samples = own_solutions(read_tasks(path, benchmark), path)[::step]
        assert len(samples) > 40
        assert names(samples) == ["passed"] * len(samples)


@pytest.mark.slow
def test_all_own_solutions_pass(shared):
    for benchmark, name, n in (("humaneval", "humaneval-python", 164), ("mbpp", "mbpp", 974)):
        path = shared / "evaluation" / f"{name}.jsonl"
        assert names(own_solutions(read_tasks(path, benchmark), path)) == ["passed"] * n


@pytest.mark.parametrize("language", LANGUAGES)
def test_right_solutions_pass(shared, language):
    require(language)
    samples = solutions.samples(shared / "evaluation", language)
    assert len(samples) > 10
    assert names(samples) == ["passed"] * len(samples)


BROKEN = {  # of `add`: result, syntax, exception, endless loop, early end
    "cpp": ("return x - y;", "return x +;", "throw 1;", "for (;;);", "exit(0);"),
    "java": ("return x - y;", "return x +;", "throw new RuntimeException();", "while (true);", "System.exit(0); return 0;"),
    "cs": ("return x - y;", "return x +;", "throw new Exception();", "while (true);", "Environment.Exit(0); return 0;"),
    "js": ("return x - y\n}", "return x +\n}", "throw new Error('x')\n}", "for (;;);\n}", "process.exit(0)\n}"),
    "ts": ("return x - y\n}", "return x + 'a'\n}", "throw new Error('x')\n}", "for (;;);\n}", "require('process').exit(0); return 0\n}"),
    "php": ("return $x - $y;\n}", "return $x +;\n}", "throw new Error('x');\n}", "for (;;);\n}", "exit(0);\n}"),
    "sh": ("echo $(($1 - $2))", "echo $(($1 + $2)", "return 7", "while :; do :; done", "kill $$"),
}  # fmt: skip


@pytest.mark.parametrize("language", LANGUAGES)
def test_broken_solutions_fail(shared, language):
    require(language)
    tasks = {
        task.task_id: task for task in read_tasks(shared / "evaluation" / f"humaneval-{language}.jsonl", "humaneval")
    }
    found = names([Sample(tasks["HumanEval_53_add"], f"    {body}\n") for body in BROKEN[language]], timeout_s=2)
    expected = ["failed", "error", "error", "timeout", "failed"]
    if language == "sh":  # what a function of a shell prints is all that its tests see
        expected = ["failed", "error", "failed", "timeout", "error"]
    assert found == expected


WHOLE_ADD = {
    "cpp": "#include <vector>\nusing namespace std;\nlong add(long x, long y) {\n  return x + y;\n}\nint main() {\n  return add(1, 2);\n}\n",
    "java": "import java.util.*;\npublic class Main {\n  public static long add(long x, long y) { return x + y; }\n"
    "  public static void main(String[] args) {\n    System.out.println(add(1, 2));\n  }\n}\n",
    "cs": "using System;\npublic class Solution {\n  public static long Add(long x, long y) { return x + y; }\n"
    "  static void Main() { Console.WriteLine(Add(1, 2)); }\n}\n",
    "js": "const add = (x, y) => x + y;\nmodule.exports = add;\n",
    "ts": "export function add(x: number, y: number): number {\n  return x + y;\n}\n",
    "php": "<?php\nfunction add($x, $y) {\n  return $x + $y;\n}\n?>\n",
    "sh": "#!/bin/bash\nadd() {\n  echo $(($1 + $2))\n}\n",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_whole_functions_pass(shared, language):
    require(language)
    tasks = {
        task.task_id: task for task in read_tasks(shared / "evaluation" / f"humaneval-{language}.jsonl", "humaneval")
    }
    task = tasks["HumanEval_53_add"]
    body = solutions.bodies(language)[task.task_id]
    whole = WHOLE_ADD[language]
    closing = {"java": "    }\n", "cs": "    }\n", "js": "", "ts": "", "php": ""}.get(language, "}\n")
    forms = [
        whole,
        f"Of course:\n```{language}\n{whole}```\nDone.",
        task.prompt + body + closing,
        f"{body}{closing}\n{'#' if language == 'sh' else '//'} the end",
        f"{task.prompt}{body}{closing}\nThis adds two numbers.\n",
    ]
    assert names([Sample(task, form) for form in forms]) == ["passed"] * len(forms)


def test_java_tuples(shared):
    require("java")
    tasks = tasks_by_id(shared, "java")
    body = "        long s = 0, p = 1;\n        for (long n : numbers) { s += n; p *= n; }\n        return Pair.with(s, p);\n"
    wrong = body.replace("s, p)", "p, s)")
    assert names([Sample(tasks["HumanEval_8_sum_product"], text) for text in (body, wrong)]) == ["passed", "failed"]


def test_a_missing_compiler_is_no_failure(shared, monkeypatch):
    samples = solutions.samples(shared / "evaluation", "cpp")[:1]
    monkeypatch.setenv("PATH", "/nowhere")
    (outcome,) = run(samples)
    assert outcome.name == "skipped"
    assert "C++ needs g++" in outcome.detail


def test_mbpp_answers(shared):
    path = shared / "evaluation" / "mbpp.jsonl"
    tasks = read_tasks(path, "mbpp")
    assert len(judged_tasks(tasks)) == 500
    task = tasks[1]
    forms = [
        f"\n{task.solution}\n[DONE]\nYou are an expert",
        f"[BEGIN]\n{task.solution}\n[DONE]",
        f" {task.solution}",
        f"Here:\n```python\n{task.solution}\n```",
        f"Here it is:\n\n{task.solution}\n\nIt uses sets.\n",
    ]
    assert names([Sample(task, form) for form in forms]) == ["passed"] * len(forms)
    assert names([Sample(task, "def similar_elements(a, b):\n    return None")]) == ["failed"]


def test_pass_at_k_is_the_share_of_draws_with_a_pass():
    for n, passed, k in ((5, 2, 1), (5, 2, 3), (6, 0, 2), (6, 5, 2), (4, 4, 4)):
        draws = list(itertools.combinations([True] * passed + [False] * (n - passed), k))
        assert pass_at_k(n, passed, k) == pytest.approx(sum(map(any, draws)) / len(draws))
    assert math.isclose(pass_at_k(200, 1, 100), 0.5)
    outcomes = {"a": ["passed", "failed"], "b": ["error", "timeout"], "c": ["skipped", "skipped"]}
    assert mean_pass_at_k(outcomes, 1) == 0.25
    assert mean_pass_at_k(outcomes, 2) == 0.5
    assert mean_pass_at_k(outcomes, 3) is None
    assert mean_pass_at_k({"c": ["skipped"]}, 1) is None


def test_completions_are_matched_by_id(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text(
        "\ufeff"
        + "\n\r\n".join(json.dumps({"task_id": i, "completion": "x"}) for i in (0, "0", "HumanEval/0", "Python/0")),
        encoding="utf-8",
    )
    assert [sample.task for sample in read_completions(path, [PYTHON_TASK])] == [PYTHON_TASK] * 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"task_id": "Python/1", "completion": ""}', "line 1: the data have no problem 'Python/1'"),
        ('{"task_id": "Python/0"}', "line 1 lacks task_id or completion"),
        ('{"task_id": "Python/0", "completion": 3}', "line 1 lacks task_id or completion"),
        ("\n[1]", "line 2 is not a JSON object"),
        ("{", "line 1 is not a JSON object"),
        ("", "holds no completions"),
    ],
)
def test_bad_completions(tmp_path, text, message):
    path = tmp_path / "c.jsonl"
    path.write_text(text)
    with pytest.raises(FileError, match=message):
        read_completions(path, [PYTHON_TASK])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"task_id": "a"}, "no 'prompt'"),
        ({"task_id": "a", "prompt": "x = 1", "test": ""}, "is no humaneval problem"),
        ({"task_id": "a", "prompt": "def f():", "test": 1}, "test is not a text"),
        ({"task_id": "a", "prompt": "def f():", "test": "", "language": "cobol"}, "no language 'cobol'"),
        ({"task_id": "a", "prompt": "def f():", "test": "", "stop_tokens": "x"}, "stop_tokens is not a list"),
    ],
)
def test_bad_data(tmp_path, row, message):
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(FileError, match=message):
        read_tasks(path, "humaneval")


def test_long_hostile_completions_are_read_quickly():
    for text in (
        "{" * 200_000,
        '"' * 200_001,
        "```" * 70_000,
        "def area" * 30_000,
        " " * 300_000,
        "a<" * 100_000,
        "/*" * 100_000,
    ):
        code_of(PYTHON_TASK, text)
