"""Brackets, counted against Python's own tokenizer."""

from __future__ import annotations

import io
import tokenize
from pathlib import Path

import pytest

from localcoder.assist.brackets import closers_of, find_brackets, line_comment_of

MODULES = ["json/decoder.py", "argparse.py", "textwrap.py", "difflib.py"]


def brackets_by_the_interpreter(text: str) -> int:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(token.type == tokenize.OP and token.string in "()[]{}" for token in tokens)


@pytest.mark.parametrize("name", MODULES)
def test_a_file_of_the_standard_library_is_balanced_and_each_half_owes_the_other(name):
    text = (Path(io.__file__).parent / name).read_text(encoding="utf-8")
    whole = find_brackets(text, "#")
    assert (whole.opened, whole.closed, whole.literal) == ((), (), False)
    for at in range(100, len(text), len(text) // 40):
        before = find_brackets(text[:at], "#")
        if before.literal or text[:at].count('"""') % 2 or "'" in text[:at].rsplit("\n", 1)[-1]:
            continue
        line = text[:at].rsplit("\n", 1)[-1]
        if '"' in line or "#" in line:
            continue
        after = find_brackets(text[at:], "#")
        if len(before.opened) != len(after.closed):
            assert '"""' in text[at:]  # a half cannot tell where strings of the other end
    n = brackets_by_the_interpreter(text)
    assert n == len([c for c in _pairs(text)])


def _pairs(text: str) -> str:
    from localcoder.assist.brackets import _PATTERNS

    return "".join(match["bracket"] or "" for match in _PATTERNS["#"].finditer(text))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("a.py", "f('(', \"[\") # {\nx = '''\n(((\n'''"),
        ("a.c", "f('(', \"[\"); // {\n/* (( \n [ */ g();"),
        ("a.js", "f(`(\n(`, '[') // ("),
        ("a.sql", "select (1) -- )\n"),
        ("Makefile", "x = $(y) # )\n"),
    ],
)
def test_strings_and_comments_do_not_count(path, text):
    found = find_brackets(text, line_comment_of(path))
    assert (found.opened, found.closed, found.literal) == ((), (), False)


def test_what_is_left_open_or_over_is_found():
    found = find_brackets("a) + f([x, {", "#")
    assert found.closed == ((")", 1),)
    assert [c for c, _ in found.opened] == ["(", "[", "{"]
    assert closers_of(found) == "}])"
    assert find_brackets("f(x) + y)", "#", start=3).closed == ((")", 3), (")", 8))
    assert find_brackets('x = """ (', "#").literal
    assert find_brackets("x = /* (", "//").literal
