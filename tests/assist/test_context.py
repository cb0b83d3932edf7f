"""What is cut when a text does not fit, and what never is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localcoder.assist.context import fit
from localcoder.assist.lines import enclosing, split_lines

FILLER = "".join(f"    value_{i} = {i}\n" for i in range(200))
PREFIX = f"""import os
from sys import path

UNUSED = 1

class Reader:
    '''Reads.'''

    def old(self):
{FILLER}
    def read(self, name):
{FILLER.replace("    ", "        ")}        x = 1
        re"""
SUFFIX = f"turn x\n{FILLER}"


def words(text: str) -> int:
    return len(text.split())


def test_what_fits_is_whole():
    context = fit("a b\n", "c\n", {"x.py": "d"}, 10, words)
    assert (context.prefix, context.suffix, context.files, context.n_left_out) == ("a b\n", "c\n", {"x.py": "d"}, 0)


@pytest.mark.parametrize("budget", [60, 120, 300, 900])
def test_near_lines_imports_and_enclosing_definitions_are_kept(budget):
    context = fit(PREFIX, SUFFIX, {}, budget, words)
    assert words(context.prefix) + words(context.suffix) <= budget
    assert words(context.prefix) + words(context.suffix) > 0.8 * budget
    kept = split_lines(context.prefix)
    assert kept[:3] == ["import os\n", "from sys import path\n", "class Reader:\n"]
    assert "    def read(self, name):\n" in kept
    assert kept[-2:] == ["        x = 1\n", "        re"]
    assert context.suffix.startswith("turn x\n    value_0 = 0\n")
    assert context.n_left_out == len(PREFIX) + len(SUFFIX) - len(context.prefix) - len(context.suffix)


@given(st.lists(st.sampled_from(["a b\n", "  c\n", "\n", "import x\n", "def f():\n"])), st.integers(12, 60))
def test_whole_lines_in_their_order_within_the_budget(lines, budget):
    text = "".join(lines)
    context = fit(text, text, {}, budget, words)
    assert words(context.prefix) + words(context.suffix) <= budget
    assert text.startswith(context.suffix)
    rest = iter(lines)
    assert all(line in rest for line in split_lines(context.prefix))  # a subsequence


def test_a_line_that_is_too_long_is_cut_within():
    context = fit("a " * 1000, "b " * 1000, {}, 40, words)
    assert context.prefix.split() == ["a"] * 30
    assert context.suffix.split() == ["b"] * 10


def test_a_text_of_megabytes_is_not_counted_to_its_end():
    counted = []

    def count(text: str) -> int:
        counted.append(len(text))
        return len(text) // 4 + 1

    fit("x = 1\n" * 200_000, "y = 2\n" * 200_000, {}, 500, count)
    assert sum(counted) < 200_000


def test_other_files_are_whole_and_the_last_are_kept():
    files = {f"{name}.py": f"{name} " * 10 for name in "abcd"}
    context = fit("p\n" * 30, "s\n", files, 60, words)
    assert list(context.files) == ["c.py", "d.py"]
    assert context.files["d.py"] == files["d.py"]
    assert context.n_left_out == 0
    assert not fit("p\n" * 100, "", {"big.py": "x " * 100}, 60, words).files


def test_what_encloses_a_line():
    lines = [
        "class A:",
        "    def f(self):",
        "        if x:",
        "            y",
        "        z",
        "    def g(self):",
        "        q",
    ]
    assert [lines[i] for i in enclosing(lines)] == ["class A:", "    def g(self):"]
    assert [lines[i] for i in enclosing(lines[:4])] == ["class A:", "    def f(self):", "        if x:"]
    assert enclosing([]) == enclosing([""]) == enclosing(["x"]) == []
