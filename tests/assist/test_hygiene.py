"""Where a completion ends and what is tidied about it; each rule by itself, and what must hold of all of them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from localcoder.assist.hygiene import ALL_RULES, NO_RULES, Hygiene, Rules
from localcoder.errors import OptionError


def tidy(prefix: str, written: str, suffix: str, scope=None, rules: Rules = ALL_RULES, path: str = "a.py") -> str:
    return Hygiene(prefix, suffix, scope=scope, path=path, rules=rules).finish(written)


@pytest.mark.parametrize(
    ("prefix", "written", "suffix", "scope", "expected"),
    [
        ("x = ", "1\ny = 2\n", "\n", "line", "1"),
        ("def f():", "\n    return 1\nx", "\n", "line", "\n    return 1"),
        ("x = ", "f(1,\n      2)\ny", "\n", "line", "f(1,\n      2)"),
        ("    ", "x = 1\n    y = 2", "return x\n", "line", "x = 1\n    "),
        ("def f():\n    ", "x = 1\n\n    if x:\n        y\n    return x\n\ndef g", "\n", "block", None),
        ("def f(a):", "\n    return a\n\nprint(1)\n", "\n", "block", "\n    return a"),
        ("    if a:\n        ", "b\n    c\n    d\n", "", "block", "b"),
        ("def f(a):\n    if a:\n        ", "b\n    return c\n\ndef g():", "", "function", "b\n    return c"),
        ("def f(a):\n", "    b\n    c\nd\n", "", "function", "    b\n    c"),
        ("class A:\n    x = 1\n\n    ", "def f(self):\n        return 1\n\n    def g", "", "function", None),
    ],
)
def test_scopes(prefix, written, suffix, scope, expected):
    if expected is None:
        expected = written[: written.rindex("\n\n")]
    assert tidy(prefix, written, suffix, scope) == expected


@pytest.mark.parametrize(
    ("prefix", "written", "suffix", "expected"),
    [
        ("print(", "x)\n", ")\n", "x"),  # the suffix closes it
        ("print(", "f(x))\ny)", "\n", "f(x))\ny"),  # allowed once
        ("print(", "f(x)", ")\n", "f(x)"),
        ("x = ", "f(a, [b", "\n", "f(a, [b])"),
        ("x = ", "1\ny = f(a,", "\n", "1"),
        ("if a {\n", "  b();\n}\nfoo(", "\n}\n", "  b();"),
        ("x = '''(", "a)))", "'''\n", "a)))"),
        ("x = ", "f(", ")\n", "f("),  # the suffix closes it
        ("x = ", "')' + y", "\n", "')' + y"),
    ],
)
def test_brackets(prefix, written, suffix, expected):
    rules = Rules(heal_prefix=False, heal_suffix=False, overlap=False, brackets=True, blank=False)
    path = "a.c" if "{" in prefix else "a.py"
    assert tidy(prefix, written, suffix, rules=rules, path=path) == expected
    assert tidy(prefix, written, suffix, rules=NO_RULES, path=path) == written


@pytest.mark.parametrize(
    ("prefix", "written", "suffix", "expected"),
    [
        ("x = ", "a + other", "other\n", "a + "),
        ("    ", "x = 1\n    return x\n", "\n    return x\n", "x = 1"),
        ("    ", "x = 1\n    y = 2\n    return x", "\n    return x\n", "x = 1\n    y = 2"),
        ("f(", "a)", ")\n", "a"),
        ("f(", "g(a)", ")\n", "g(a)"),
        ("x = ", "b", "b_c\n", "b"),
        ("x = ", "name", "names = 1\n", "name"),
    ],
)
def test_overlap_with_the_suffix(prefix, written, suffix, expected):
    rules = Rules(heal_prefix=False, heal_suffix=False, overlap=True, brackets=False, blank=False)
    assert tidy(prefix, written, suffix, rules=rules) == expected


def test_white_space_alone_is_no_completion():
    assert tidy("x", " \n  ", "\n") == ""
    assert tidy("x", " \n  ", "\n", rules=NO_RULES) == " \n  "


def test_a_scope_that_does_not_exist():
    with pytest.raises(OptionError, match="scope is 'page'; expected one of line, block, function"):
        Hygiene("", "", scope="page")


def test_a_bracket_in_a_string_that_is_not_finished_yet_ends_nothing():
    hygiene = Hygiene("print(", ")\n", path="a.py")
    written = "'a) b', \"c]\", x"
    assert not any(hygiene.is_done(written[:n]) for n in range(len(written) + 1))
    assert hygiene.is_done(written + ")")


def holes():
    """Expressions of a few files of the standard library: text before, the expression, text after."""
    for name in ("textwrap.py", "bisect.py", "json/decoder.py"):
        text = (Path(ast.__file__).parent / name).read_text(encoding="utf-8")
        starts = [0]
        for line in text.split("\n"):
            starts.append(starts[-1] + len(line) + 1)
        for node in list(ast.walk(ast.parse(text)))[::7]:
            if isinstance(node, (ast.Call, ast.BinOp, ast.Subscript, ast.Return, ast.Assign)) and text.isascii():
                begin = starts[node.lineno - 1] + node.col_offset
                end = starts[node.end_lineno - 1] + node.end_col_offset
                yield text[:begin], text[begin:end], text[end:]


def test_what_was_there_is_left_as_it_is():
    """The true middle is never changed, by any rule, however the model goes on after it."""
    cases = list(holes())
    assert len(cases) > 50
    changed = [middle for prefix, middle, suffix in cases if tidy(prefix, middle, suffix) != middle]
    assert len(changed) <= len(cases) // 100, changed


def test_a_middle_that_runs_on_into_the_suffix_is_mostly_repaired():
    cases = list(holes())
    n_parsed = n_raw = 0
    for prefix, middle, suffix in cases:
        written = middle + suffix[: suffix.find("\n", 2)]
        n_raw += parses(prefix + written + suffix)
        n_parsed += parses(prefix + tidy(prefix, written, suffix) + suffix)
    assert n_parsed >= 0.9 * len(cases)
    assert n_raw < n_parsed


def parses(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def test_is_done_never_lies():
    """Once it says so, nothing that comes changes the result."""
    for prefix, middle, suffix in [case for case in holes() if len(case[1]) < 150][::9]:
        for scope in (None, "line", "block", "function"):
            hygiene = Hygiene(prefix, suffix, scope=scope, path="a.py")
            written = middle + suffix[:60]
            ends = [n for n in range(1, len(written)) if hygiene.is_done(written[:n])]
            results = {hygiene.finish(written[:n]) for n in ends}
            assert len(results) <= 1, (prefix[-60:], written)
