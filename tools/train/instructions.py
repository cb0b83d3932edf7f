"""Instructions and their answers, made from functions that have a docstring."""

from __future__ import annotations

import ast
import inspect
import random
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

_MAX_LINES = 40
_MIN_CODE = 40  # characters of the answer
_SUMMARY = range(15, 161)  # characters
_WORDS = re.compile(r"[A-Za-z][\w`'\"()\[\]{},:;/=+*<>&%.@#-]*( |$)")
_FORMS = (
    "Write a Python function `{name}`: {summary}",
    "Write a function for this: {summary}",
    "{summary} Write it in Python.",
    "Implement `{signature}` in Python. {summary}",
    "Write a Python function with the signature `{signature}`. {summary}",
)


@dataclass(frozen=True)
class Pair:
    """What a user asks for, and a code block that answers it."""

    instruction: str
    answer: str


def make_pairs(text: str, chance: random.Random) -> Iterator[Pair]:
    """The pairs that a valid source file gives: of its functions, not its methods, that a summary describes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(text)
    lines = text.split("\n")
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.decorator_list:
            summary = _summary(node)
            code = _code(node, lines) if summary else None
            if code and summary:
                form = chance.choice(_FORMS)
                name, signature = node.name, f"{node.name}({ast.unparse(node.args)})"
                instruction = form.format(name=name, signature=signature, summary=summary)
                yield Pair(instruction, f"```python\n{code}\n```")


def _summary(node: ast.FunctionDef) -> str | None:
    """The first sentence or paragraph of the docstring, if it is plain words."""
    docstring = ast.get_docstring(node)
    if not docstring:
        return None
    paragraph = " ".join(inspect.cleandoc(docstring).split("\n\n")[0].split())
    summary = re.split(r"(?<=[a-z)`])\. ", paragraph)[0].rstrip(".:") + "."
    is_plain = _WORDS.match(summary) and not re.search(r">>>|:param|@param|\bTODO\b|\bdeprecated\b", summary, re.I)
    return summary if len(summary) in _SUMMARY and is_plain and " " in summary else None


def _code(node: ast.FunctionDef, lines: list[str]) -> str | None:
    """The function without its docstring; None where that leaves nothing to learn, or too much."""
    body = node.body[1:]
    if not body or node.end_lineno is None or node.end_lineno - node.lineno > _MAX_LINES:
        return None
    docstring = node.body[0]
    if docstring.lineno == node.lineno or docstring.end_lineno is None or body[0].lineno == docstring.end_lineno:
        return None  # all on one line
    if all(isinstance(statement, (ast.Pass, ast.Raise)) for statement in body):
        return None
    head = lines[node.lineno - 1 : docstring.lineno - 1]
    tail = "\n".join(lines[docstring.end_lineno : node.end_lineno]).lstrip("\n")
    code = "\n".join(head) + "\n" + tail
    return code if len(code) >= _MIN_CODE else None
