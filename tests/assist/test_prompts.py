"""The questions to a model, and the code in its answers."""

from __future__ import annotations

import pytest

from localcoder.assist.prompts import PROMPTS, check_prompt, code_block, fields_of, fill_prompt, language_of
from localcoder.errors import OptionError


@pytest.mark.parametrize("name", PROMPTS)
def test_each_prompt_is_one_that_a_user_might_have_written(name):
    check_prompt(name, PROMPTS[name])
    values = {field: f"<{field}>" for field in fields_of(name)}
    filled = fill_prompt(name, values, {})
    assert all(value in filled for value in values.values())
    assert "{" not in filled


def test_what_is_filled_in_is_not_looked_into():
    values = {"path": "{code}", "language": "", "code": "{path} {x} {}\n"}
    assert fill_prompt("explain", values, {"explain": "{path}|{code}"}) == "{code}|{path} {x} {}\n"


@pytest.mark.parametrize(
    ("text", "problem"), [(1, "expected a text"), ("{diff} {x}", "has the field"), ("none", "lacks the field")]
)
def test_what_cannot_replace_a_prompt(text, problem):
    with pytest.raises(OptionError, match=problem):
        check_prompt("review", text)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("Sure:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```\na\n\n  b\n```", "a\n\n  b\n"),
        ("~~~\na\n```\nb\n~~~", "a\n```\nb\n"),
        ("````md\n```\na\n```\n````", "```\na\n```\n"),
        ("```\n```", ""),
        ("one\n```\na\n```\ntwo\n```\nb\n```", "a\n"),
        ("no code", None),
        ("```python\nx = 1", None),
        ("", None),
    ],
)
def test_the_code_of_an_answer(answer, code):
    assert code_block(answer) == code


def test_code_with_lines_that_look_like_its_end():
    assert code_block("```\na\n```\nb\n```\n", to_last=True) == "a\n```\nb\n"


def test_languages():
    assert [language_of(name) for name in ("a.py", "A.CPP", "Makefile", None)] == ["python", "cpp", "", ""]
