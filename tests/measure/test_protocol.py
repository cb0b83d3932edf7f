"""What a model is asked: word for word as in DeepSeek-Coder's evaluation."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from localcoder.errors import OptionError
from localcoder.measure.evaluation import protocol
from localcoder.measure.evaluation.protocol import published, requests_for
from localcoder.measure.evaluation.tasks import judged_tasks, read_tasks


def coder(*, is_instruct=False, n_ctx=100_000, shape=(0, 0, 0)):
    """Stands in for a Coder whose tokens are characters."""
    hyperparameters = SimpleNamespace(n_layer=shape[0], n_embd=shape[1], n_head_kv=shape[2])
    return SimpleNamespace(
        is_instruct=is_instruct,
        n_ctx=n_ctx,
        tokenizer=None,
        tokenize=list,
        engine=SimpleNamespace(hyperparameters=hyperparameters),
    )


@pytest.fixture(autouse=True)
def _chat(monkeypatch):
    monkeypatch.setattr(protocol, "chat_prompt", lambda tokenizer, messages: list(messages[0]["content"]))
    monkeypatch.setattr(protocol, "MAX_INPUT", 100_000)


def asked(coder_, tasks, all_tasks):
    return ["".join(request.prompt) for request in requests_for(coder_, tasks, all_tasks)]


def test_base_humaneval(shared):
    tasks = read_tasks(shared / "evaluation" / "humaneval-java.jsonl", "humaneval")
    request = requests_for(coder(), tasks[:1], tasks)[0]
    assert "".join(request.prompt) == tasks[0].prompt.strip()
    assert (request.max_tokens, request.stops) == (500, ("\n    }\n",))


def test_instruct_humaneval(shared):
    tasks = read_tasks(shared / "evaluation" / "humaneval-cs.jsonl", "humaneval")
    request = requests_for(coder(is_instruct=True), tasks[:1], tasks)[0]
    begin, fence, rest = "".join(request.prompt).partition("```")
    assert begin == (
        "Please continue to complete the function. You are not allowed to modify the given code and do the completion "
        "only. Please return all completed function in a codeblock. Here is the given code to do completion:\n"
    )
    assert rest == f"csharp\n{tasks[0].prompt.strip()}\n{fence}"
    assert (request.max_tokens, request.stops) == (1024, ())


def test_base_mbpp(shared):
    tasks = read_tasks(shared / "evaluation" / "mbpp.jsonl", "mbpp")
    (text,) = asked(coder(), judged_tasks(tasks)[:1], tasks)
    parts = text.split("You are an expert Python programmer, and here is your task: ")
    assert [part[:30] for part in parts] == ["", *(task.question[:30] for task in (*tasks[1:4], tasks[10]))]
    assert all(re.search(r"Your code should pass these tests:\n\nassert ", part) for part in parts[1:])
    assert [part.endswith("\n[DONE]\n") for part in parts[1:]] == [True, True, True, False]
    assert text.endswith(f"{tasks[10].examples[-1]}\n[BEGIN]")
    assert "\r" not in text
    assert "\t" not in parts[1].partition("[BEGIN]")[2]


def test_instruct_mbpp(shared):
    tasks = read_tasks(shared / "evaluation" / "mbpp.jsonl", "mbpp")
    (text,) = asked(coder(is_instruct=True), judged_tasks(tasks)[:1], tasks)
    assert text.startswith(
        "Please refer the given examples and generate a python function for my problem.\nExamples are listed as "
        "follows:\n- Example 1:\n>>> Problem:\n"
    )
    assert text.count("\n>>> Code:\n```python\n") == 3
    assert f"\n\nHere is my problem:\n>>> Problem:\n{tasks[10].question}\n>>> Test Cases:\nassert " in text


def test_a_short_context_shows_fewer_examples(shared):
    tasks = read_tasks(shared / "evaluation" / "mbpp.jsonl", "mbpp")
    some = judged_tasks(tasks)[:1]
    (text,) = asked(coder(n_ctx=500 + len(asked(coder(), some, tasks)[0]) - 1), some, tasks)
    assert text.count("[DONE]") == 2
    with pytest.raises(OptionError, match="do not fit in a context of 600"):
        requests_for(coder(n_ctx=600), some, tasks)
    with pytest.raises(OptionError, match="lack the problems 2, 3, 4"):
        requests_for(coder(), some, some)


def test_published_figures():
    small, instruct = coder(shape=(24, 2048, 16)), coder(shape=(32, 4096, 32), is_instruct=True)
    assert published(small, "humaneval", "python").pass_at_1 == 0.348
    assert published(small, "humaneval", "js").pass_at_1 == 0.286
    assert published(small, "mbpp", "python").member == "1.3B base"
    assert published(instruct, "humaneval", "cpp").pass_at_1 == 0.634
    assert published(coder(shape=(1, 2, 3)), "mbpp", "python") is None
    assert published(instruct, "humaneval", "python").pass_at_1 == 0.786
    assert published(small, "mbpp", "python").pass_at_1 == 0.462
    averages = {  # printed in the same table
        "base": {"1.3B": 28.3, "5.7B": 41.3, "6.7B": 44.7, "33B": 50.3},
        "instruct": {"1.3B": 48.4, "6.7B": 66.1, "33B": 69.2},
    }
    for (kind, size), average in {(k, s): average for k, row in averages.items() for s, average in row.items()}.items():
        row = protocol._HUMANEVAL[size, kind]
        assert sum(row) / len(row) == pytest.approx(average, abs=0.06)
